#include "deploy/bench/bench_step.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <memory>

#include "deploy/bench/ceilings.h"
#include "deploy/bench/rank_threads.h"
#include "parallel/base/clock.h"
#include "parallel/plan/model_spec.h"
#include "worker/backend/backend.h"

namespace polyreme::bench {
namespace {

constexpr int32_t kTokensPerBlock = 16;
constexpr int32_t kPromptTokens = 512;
constexpr int kRounds = 3;

// Sizes that follow from the model and the options.
struct Shape {
  int32_t sequence_tokens = 0;  // context and all that is decoded
  int32_t blocks_per_sequence = 0;
  step::StepLimits limits;
};

Shape ShapeOf(const BenchStepOptions& options, const plan::ModelSpec& spec) {
  Shape shape;
  const int32_t batch_max = *std::max_element(options.batches.begin(), options.batches.end());
  shape.sequence_tokens = std::max(options.context + options.num_steps + 2, kPromptTokens + 1);
  shape.blocks_per_sequence = (shape.sequence_tokens + kTokensPerBlock - 1) / kTokensPerBlock;
  shape.limits.num_slots = batch_max;
  shape.limits.num_blocks = batch_max * shape.blocks_per_sequence;
  shape.limits.tokens_per_block = kTokensPerBlock;
  shape.limits.max_step_tokens = std::max({batch_max, options.context, kPromptTokens});
  shape.limits.max_step_samples = batch_max;
  shape.limits.max_model_len = shape.sequence_tokens;
  shape.limits.vocabulary = static_cast<int32_t>(spec.vocabulary);
  shape.limits.max_steps_in_flight = options.pipeline_parallel + 1;
  return shape;
}

// Makes plans by hand: the schedule is not what is measured here.
class StepDriver {
 public:
  StepDriver(RankThreads& ranks, const Shape& shape) : ranks_(ranks), shape_(shape) {}

  // Opens `batch` slots and computes `context` tokens of each; the last step of each draws its
  // first token.
  absl::Status Prefill(int32_t batch, int32_t context) {
    for (int32_t s = 0; s < batch; ++s) {
      step::StepPlan plan = NewPlan();
      if (s == 0) plan.closed = std::exchange(open_, {});
      plan.opened.push_back(OpenSlot(s, context));
      plan.rows.push_back({SlotId{s}, 0, context, std::nullopt});
      plan.tokens = plan.opened[0].tokens;
      plan.samples.push_back({step::Sample::Kind::kDraw, SlotId{s}, context - 1, 0});
      open_.push_back(SlotId{s});
      draws_.push_back({plan.id, 0});
      RETURN_IF_ERROR(Submit(plan, 1));
    }
    position_ = context;
    return absl::OkStatus();
  }

  // One decode step of all open slots; every token is fed back between the workers. The draw that a
  // row names must still be in flight or known; the first step takes committed tokens.
  absl::Status Decode(int32_t depth) {
    step::StepPlan plan = NewPlan();
    for (size_t s = 0; s < open_.size(); ++s) {
      plan.rows.push_back({open_[s], position_, 1, std::nullopt});
      if (draws_[s].step.value >= 0) plan.rows.back().first_token = draws_[s];
      plan.tokens.push_back(plan.rows.back().first_token.has_value() ? 0 : committed_[s]);
      plan.samples.push_back({step::Sample::Kind::kDraw, open_[s], static_cast<int32_t>(s), 0});
      draws_[s] = {plan.id, static_cast<int32_t>(s)};
    }
    ++position_;
    return Submit(plan, depth);
  }

  // Waits for all that is in flight; the tokens of the last step become known.
  absl::Status Drain() {
    while (!in_flight_.empty()) RETURN_IF_ERROR(Await());
    return absl::OkStatus();
  }
  // After a prefill, whose draws are in several steps: keeps what each drew.
  void TakeDraws() {
    for (step::TokenSource& draw : draws_) draw.step = StepId{-1};
  }
  void Forget() {
    draws_.clear();
    committed_.clear();
  }

 private:
  step::StepPlan NewPlan() {
    step::StepPlan plan;
    plan.id = StepId{next_step_++};
    plan.epoch = Epoch{1};
    return plan;
  }
  step::SlotOpen OpenSlot(int32_t s, int32_t context) const {
    step::SlotOpen open;
    open.slot = SlotId{s};
    open.sequence = SequenceId{next_step_ * shape_.limits.num_slots + s};
    for (int32_t i = 0; i < context; ++i) {
      open.tokens.push_back((s * 131 + i * 17 + 3) % shape_.limits.vocabulary);
    }
    open.num_prompt_tokens = context;
    for (int32_t b = 0; b < shape_.blocks_per_sequence; ++b) {
      open.blocks.push_back(BlockId{s * shape_.blocks_per_sequence + b});
    }
    open.sampling.temperature = 0;
    return open;
  }
  absl::Status Submit(const step::StepPlan& plan, int32_t depth) {
    RETURN_IF_ERROR(ranks_.Submit(plan));
    in_flight_.push_back(plan.id);
    while (std::ssize(in_flight_) >= depth) RETURN_IF_ERROR(Await());
    return absl::OkStatus();
  }
  absl::Status Await() {
    ASSIGN_OR_RETURN(const step::StepResult result, ranks_.Await());
    in_flight_.pop_front();
    if (result.samples.size() == 1 && std::ssize(committed_) < std::ssize(open_)) {
      committed_.push_back(result.samples[0].token);
    }
    return absl::OkStatus();
  }

  RankThreads& ranks_;
  const Shape shape_;
  int64_t next_step_ = 0;
  int32_t position_ = 0;
  std::vector<SlotId> open_;
  std::vector<step::TokenSource>
      draws_;  // by slot: where its latest token comes from; step -1: it is in committed_
  std::vector<TokenId> committed_;  // by slot
  std::deque<StepId> in_flight_;
};

Cost CostOf(const plan::ModelSpec& spec, int64_t batch, int64_t tokens, int64_t context) {
  const int64_t parameters = plan::NumParameters(spec);
  // A tied table is one; an untied embedding is read a row at a time.
  const int64_t embedding = spec.tied_head ? 0 : spec.vocabulary * spec.width;
  const int64_t read = parameters - embedding;
  const int64_t kv_floats = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim;
  const int64_t head = spec.vocabulary * spec.width;
  Cost cost;
  cost.bytes = static_cast<double>(read * SizeOf(spec.dtype) + batch * context * kv_floats * 4);
  // The head works on one token of a row only.
  cost.operations = 2.0 * static_cast<double>((read - head) * tokens + head * batch) +
                    4.0 * static_cast<double>(spec.num_layers * spec.num_query_heads *
                                              spec.head_dim * tokens * context);
  return cost;
}

std::string Line(std::string_view what, int64_t tokens, double seconds, const Cost& cost,
                 const Ceilings& ceilings) {
  const double best = cost.SecondsAtBest(ceilings);
  const std::string_view bound =
      cost.bytes / ceilings.bytes > cost.operations / ceilings.operations ? "bytes" : "FMA";
  return fmt::format("{:<14} {:>7} {:>12.1f} {:>12.0f} {:>12.1f} {:>8} {:>7.0f} %\n", what, tokens,
                     seconds * 1e6, static_cast<double>(tokens) / seconds, best * 1e6, bound,
                     100 * best / seconds);
}

class StepBench {
 public:
  StepBench(const BenchStepOptions& options, const plan::ModelSpec& spec)
      : options_(options), spec_(spec), shape_(ShapeOf(options, spec)) {}

  absl::StatusOr<std::string> Run() {
    RETURN_IF_ERROR(MeasureCeilingsOfAllRanks());
    RankThreadsOptions ranks;
    ranks.stages = options_.pipeline_parallel;
    ranks.shards = options_.tensor_parallel;
    ranks.num_threads = options_.num_threads;
    ranks.head_chunk_samples = 64;
    ranks.limits = shape_.limits;
    ASSIGN_OR_RETURN(ranks_, RankThreads::Start(options_.model, ranks));
    text_ += fmt::format("{:<14} {:>7} {:>12} {:>12} {:>12} {:>8} {:>9}\n", "step", "tokens",
                         "us a step", "tokens/s", "us at best", "bound", "share");
    StepDriver driver(*ranks_, shape_);
    for (const int32_t batch : options_.batches) RETURN_IF_ERROR(BenchDecode(driver, batch));
    RETURN_IF_ERROR(BenchPrompt(driver));
    return std::move(text_);
  }

 private:
  absl::Status MeasureCeilingsOfAllRanks() {
    const int32_t threads =
        options_.num_threads * options_.tensor_parallel * options_.pipeline_parallel;
    ASSIGN_OR_RETURN(const auto backend, backend::MakeBackend("cpu", {.num_threads = threads}));
    const Cost weights = CostOf(spec_, 1, 1, 0);
    ASSIGN_OR_RETURN(ceilings_, MeasureCeilings(backend->device(), threads,
                                                static_cast<int64_t>(weights.bytes)));
    text_ += Describe(ceilings_, backend->device(), threads);
    text_ += fmt::format("{}, tp{}pp{}, context {}\n", options_.model, options_.tensor_parallel,
                         options_.pipeline_parallel, options_.context);
    return absl::OkStatus();
  }

  absl::Status BenchDecode(StepDriver& driver, int32_t batch) {
    std::vector<double> seconds;
    for (int round = 0; round < kRounds; ++round) {
      driver.Forget();
      RETURN_IF_ERROR(driver.Prefill(batch, options_.context));
      RETURN_IF_ERROR(driver.Drain());
      driver.TakeDraws();
      RETURN_IF_ERROR(driver.Decode(1));
      const absl::Time start = MonotonicNow();
      for (int32_t i = 1; i < options_.num_steps; ++i) {
        RETURN_IF_ERROR(driver.Decode(shape_.limits.max_steps_in_flight));
      }
      RETURN_IF_ERROR(driver.Drain());
      seconds.push_back(SecondsSince(start) / (options_.num_steps - 1));
    }
    std::sort(seconds.begin(), seconds.end());
    text_ +=
        Line(fmt::format("decode x {}", batch), batch, seconds[kRounds / 2],
             CostOf(spec_, batch, batch, options_.context + options_.num_steps / 2), ceilings_);
    return absl::OkStatus();
  }

  absl::Status BenchPrompt(StepDriver& driver) {
    std::vector<double> seconds;
    for (int round = 0; round < kRounds; ++round) {
      driver.Forget();
      const absl::Time start = MonotonicNow();
      RETURN_IF_ERROR(driver.Prefill(1, kPromptTokens));
      RETURN_IF_ERROR(driver.Drain());
      seconds.push_back(SecondsSince(start));
    }
    std::sort(seconds.begin(), seconds.end());
    text_ += Line("prompt", kPromptTokens, seconds[kRounds / 2],
                  CostOf(spec_, 1, kPromptTokens, kPromptTokens / 2), ceilings_);
    return absl::OkStatus();
  }

  const BenchStepOptions options_;
  const plan::ModelSpec spec_;
  const Shape shape_;
  Ceilings ceilings_;
  std::unique_ptr<RankThreads> ranks_;
  std::string text_;
};

}  // namespace

absl::Status RunBenchStep(const BenchStepOptions& options, std::string* table) {
  if (options.batches.empty() || options.num_steps < 2 || options.context < 1) {
    return InvalidArgument("expected at least one batch, two steps and one token of context");
  }
  ASSIGN_OR_RETURN(const plan::ModelSpec spec, plan::ReadModelSpec(options.model));
  if (options.context + options.num_steps + 2 > spec.max_positions) {
    return InvalidArgument("context {} and {} steps are more than the model's {} positions",
                           options.context, options.num_steps, spec.max_positions);
  }
  ASSIGN_OR_RETURN(*table, StepBench(options, spec).Run());
  return absl::OkStatus();
}

}  // namespace polyreme::bench
