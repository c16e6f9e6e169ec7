#include "deploy/bench/bench_throughput.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <random>
#include <utility>

#include "coordinator/sched/scheduler.h"
#include "parallel/base/clock.h"

namespace polyreme::bench {
namespace {

constexpr int32_t kWarmupPrompts = 4;
constexpr int32_t kWarmupTokens = 16;

int32_t BlocksFor(int32_t tokens) {
  return (tokens + kTokensPerBlock - 1) / kTokensPerBlock;
}

// Limits of steps and scheduler; max_model_len is that of one request.
sched::SchedulerLimits LimitsOf(const BenchThroughputOptions& options, const plan::ModelSpec& spec,
                                int32_t num_blocks) {
  sched::SchedulerLimits limits;
  const int32_t running = std::min(options.max_num_seqs, options.num_prompts);
  limits.step.num_slots = running;
  limits.step.num_blocks = num_blocks;
  limits.step.tokens_per_block = kTokensPerBlock;
  limits.step.max_step_tokens = std::max(options.cluster.step_tokens(), running);
  limits.step.max_step_samples = running;
  limits.step.max_model_len = options.input_tokens + options.output_tokens;
  limits.step.vocabulary = static_cast<int32_t>(spec.vocabulary);
  limits.step.max_steps_in_flight = options.cluster.layout.stages + 1;
  limits.stages = options.cluster.layout.stages;
  limits.max_num_seqs = running;
  limits.max_num_batched_tokens = limits.step.max_step_tokens;
  limits.max_waiting = options.num_prompts + running;
  return limits;
}

// Plan, Submit, Await, Commit, as the engine's thread does, until nothing is left.
class OfflineRun {
 public:
  OfflineRun(RankThreads& ranks, const sched::SchedulerLimits& limits, uint64_t seed)
      : ranks_(ranks),
        limits_(limits),
        blocks_(limits.step.num_blocks, limits.step.tokens_per_block),
        scheduler_(limits, blocks_),
        random_(seed) {}

  absl::Status Admit(int32_t num_prompts, int32_t input_tokens, int32_t output_tokens) {
    std::uniform_int_distribution<TokenId> token(0, limits_.step.vocabulary - 1);
    for (int32_t i = 0; i < num_prompts; ++i) {
      sched::SequenceOptions sequence;
      sequence.id = SequenceId{++last_sequence_};
      for (int32_t t = 0; t < input_tokens; ++t) sequence.prompt.push_back(token(random_));
      sequence.sampling.temperature = 0;
      sequence.stop.max_tokens = output_tokens;
      sequence.stop.max_model_len = limits_.step.max_model_len;
      RETURN_IF_ERROR(scheduler_.Admit(std::make_unique<sched::Sequence>(std::move(sequence))));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ThroughputResult> Run() {
    ThroughputResult result;
    const absl::Time start = MonotonicNow();
    for (;;) {
      RETURN_IF_ERROR(PlanAhead(result));
      if (scheduler_.num_in_flight() == 0) break;
      ASSIGN_OR_RETURN(const step::StepResult step, ranks_.Await());
      ASSIGN_OR_RETURN(const auto events, scheduler_.Commit(step));
      for (const sched::TokenEvent& event : events) {
        if (event.finish == sched::Finish::kNotFinite) {
          return DataLoss("step {}: logits that are no numbers", step.id.value);
        }
        if (event.kind == sched::TokenEvent::Kind::kToken) ++result.output_tokens;
      }
    }
    result.seconds = SecondsSince(start);
    if (scheduler_.num_waiting() > 0) {
      return ResourceExhausted("{} requests wait, but none can run in {} blocks",
                               scheduler_.num_waiting(), blocks_.num_blocks());
    }
    result.preemptions = scheduler_.num_preemptions();
    return result;
  }

 private:
  absl::Status PlanAhead(ThroughputResult& result) {
    while (scheduler_.num_in_flight() < limits_.step.max_steps_in_flight) {
      const step::StepPlan* const plan = scheduler_.Plan();
      if (plan == nullptr) return absl::OkStatus();
      ++result.steps;
      RETURN_IF_ERROR(ranks_.Submit(*plan));
    }
    return absl::OkStatus();
  }

  RankThreads& ranks_;
  const sched::SchedulerLimits limits_;
  sched::BlockAllocator blocks_;
  sched::Scheduler scheduler_;
  std::mt19937_64 random_;
  int64_t last_sequence_ = 0;
};

std::string Describe(const BenchThroughputOptions& options, const ClusterFacts& facts,
                     const ThroughputResult& result) {
  const double cache_tokens = static_cast<double>(result.num_blocks) * kTokensPerBlock;
  const int64_t concurrent =
      facts.roofline.Concurrency(cache_tokens, options.input_tokens + options.output_tokens,
                                 std::min(options.max_num_seqs, options.num_prompts));
  const double best =
      facts.roofline.OfflineSeconds(facts.ceilings.rates, options.cluster.layout,
                                    options.input_tokens, options.output_tokens, concurrent) *
      options.num_prompts;
  const auto output = static_cast<double>(result.output_tokens);
  const auto total = output + static_cast<double>(result.prompt_tokens);
  return fmt::format(
      "{} requests of {} + {} tokens, at most {} at once, {} cache tokens\n"
      "{:.1f} s, {} steps, {} preemptions\n"
      "output {:.1f} tokens/s, total {:.1f} tokens/s; at best {:.1f} and {:.1f} ({} at once), "
      "share "
      "{:.0f} %\n",
      options.num_prompts, options.input_tokens, options.output_tokens,
      std::min(options.max_num_seqs, options.num_prompts), cache_tokens, result.seconds,
      result.steps, result.preemptions, output / result.seconds, total / result.seconds,
      output / best, total / best, concurrent, SharePercent(best, result.seconds));
}

absl::Status Check(const BenchThroughputOptions& options, const plan::ModelSpec& spec) {
  if (options.num_prompts < 1 || options.input_tokens < 1 || options.output_tokens < 1 ||
      options.max_num_seqs < 1) {
    return InvalidArgument(
        "expected at least one prompt, of one token, with one drawn; got {} x "
        "({} + {})",
        options.num_prompts, options.input_tokens, options.output_tokens);
  }
  if (options.input_tokens + options.output_tokens > spec.max_positions) {
    return InvalidArgument("{} + {} tokens are more than the model's {} positions",
                           options.input_tokens, options.output_tokens, spec.max_positions);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunBenchThroughput(const BenchThroughputOptions& options, std::string* table,
                                ThroughputResult* result) {
  ASSIGN_OR_RETURN(const plan::ModelSpec spec, plan::ReadModelSpec(options.cluster.model));
  RETURN_IF_ERROR(Check(options, spec));
  ASSIGN_OR_RETURN(const ClusterFacts facts, GatherFacts(options.cluster));
  const int32_t running = std::min(options.max_num_seqs, options.num_prompts);
  const int32_t wanted = running * (BlocksFor(options.input_tokens + options.output_tokens) + 1);
  ASSIGN_OR_RETURN(
      const int32_t num_blocks,
      NumBlocksThatFit(options.cluster, spec, LimitsOf(options, spec, wanted).step, wanted));
  const sched::SchedulerLimits limits = LimitsOf(options, spec, num_blocks);
  ASSIGN_OR_RETURN(const auto ranks, StartRanks(options.cluster, limits.step));
  OfflineRun run(*ranks, limits, options.seed);
  RETURN_IF_ERROR(run.Admit(std::min(kWarmupPrompts, running),
                            std::min(kWarmupTokens, options.input_tokens),
                            std::min(kWarmupTokens, options.output_tokens)));
  RETURN_IF_ERROR(run.Run().status());
  RETURN_IF_ERROR(run.Admit(options.num_prompts, options.input_tokens, options.output_tokens));
  ASSIGN_OR_RETURN(ThroughputResult measured, run.Run());
  measured.prompt_tokens = int64_t{options.num_prompts} * options.input_tokens;
  measured.num_blocks = num_blocks;
  *table = facts.title + Describe(options, facts, measured);
  if (result != nullptr) *result = measured;
  return absl::OkStatus();
}

}  // namespace polyreme::bench
