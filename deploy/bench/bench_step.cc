#include "deploy/bench/bench_step.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "deploy/bench/step_driver.h"
#include "parallel/base/clock.h"

namespace polyreme::bench {
namespace {

constexpr int32_t kUnmeasuredSteps = 4;  // until the pipeline is full

BenchStepOptions WithDefaults(BenchStepOptions options) {
  if (options.batches.empty()) options.batches = {1, 2, 4, 8, 16, 32, 64};
  if (options.prompts.empty()) {
    options.prompts =
        options.cluster.on_gpu() ? std::vector<int32_t>{2048, 8192, 32768} : std::vector{512};
  }
  return options;
}

double Quantile(std::vector<absl::Duration> values, double q) {
  std::sort(values.begin(), values.end());
  return absl::ToDoubleSeconds(
      values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))]);
}

class StepBench {
 public:
  StepBench(const BenchStepOptions& options, ClusterFacts facts)
      : options_(options),
        facts_(std::move(facts)),
        batch_max_(*std::max_element(options.batches.begin(), options.batches.end())),
        prompt_max_(*std::max_element(options.prompts.begin(), options.prompts.end())),
        decode_tokens_(options.context + options.num_steps + kUnmeasuredSteps + 2) {}

  const TextTable& rows() const { return rows_; }

  absl::StatusOr<std::string> Run() {
    RETURN_IF_ERROR(CheckSizes());
    limits_ = LimitsOf();
    text_ = facts_.title;
    const absl::Time start = MonotonicNow();
    ASSIGN_OR_RETURN(ranks_, StartRanks(options_.cluster, limits_));
    text_ += fmt::format("ready after {:.1f} s\n{:<20} {:>12} {:>12} {:>12} {:>12} {:>8}\n",
                         SecondsSince(start), "step", "us, median", "us, p99", "tokens/s",
                         "us at best", "share");
    StepDriver driver(*ranks_, limits_);
    RETURN_IF_ERROR(BenchDecode(driver));
    for (const int32_t tokens : options_.prompts) RETURN_IF_ERROR(BenchPrompt(driver, tokens));
    return std::move(text_);
  }

 private:
  absl::Status CheckSizes() const {
    const int32_t longest = std::max(decode_tokens_, prompt_max_ + 1);
    if (longest > facts_.spec.max_positions) {
      return InvalidArgument(
          "context {} with {} steps and prompts of {} tokens are more than the "
          "model's {} positions",
          options_.context, options_.num_steps, prompt_max_, facts_.spec.max_positions);
    }
    return absl::OkStatus();
  }

  step::StepLimits LimitsOf() const {
    const auto blocks = [](int32_t tokens) {
      return (tokens + kTokensPerBlock - 1) / kTokensPerBlock;
    };
    step::StepLimits limits;
    limits.num_slots = batch_max_;
    limits.num_blocks = std::max(batch_max_ * blocks(decode_tokens_), blocks(prompt_max_ + 1));
    limits.tokens_per_block = kTokensPerBlock;
    limits.max_step_tokens = std::max(batch_max_, options_.cluster.step_tokens());
    limits.max_step_samples = batch_max_;
    limits.max_model_len = std::max(decode_tokens_, prompt_max_ + 1);
    limits.vocabulary = static_cast<int32_t>(facts_.spec.vocabulary);
    limits.max_steps_in_flight = options_.cluster.layout.stages + 1;
    return limits;
  }

  std::vector<TokenId> TokensOf(int32_t slot, int32_t count) const {
    std::vector<TokenId> tokens(static_cast<size_t>(count));
    for (int32_t i = 0; i < count; ++i) {
      tokens[static_cast<size_t>(i)] = (slot * 131 + i * 17 + 3) % limits_.vocabulary;
    }
    return tokens;
  }

  // All batches decode from the same positions of the same sequences, whose contexts are computed
  // once.
  absl::Status BenchDecode(StepDriver& driver) {
    driver.Open(batch_max_, decode_tokens_,
                [this](int32_t slot) { return TokensOf(slot, options_.context); });
    RETURN_IF_ERROR(driver.Prefill(batch_max_, options_.context));
    for (const int32_t batch : options_.batches) {
      const int32_t cohorts = std::min(batch, options_.cluster.layout.stages);
      ASSIGN_OR_RETURN(
          std::vector<absl::Duration> steps,
          driver.Decode(batch, options_.context, options_.num_steps + kUnmeasuredSteps, cohorts));
      steps.erase(steps.begin(), steps.begin() + kUnmeasuredSteps - 1);
      const double best = facts_.roofline.DecodeSeconds(
          facts_.ceilings.rates, options_.cluster.layout, batch,
          options_.context + kUnmeasuredSteps + options_.num_steps / 2.0);
      AddLine(fmt::format("decode {} x {}", batch, options_.context), batch, steps, best);
    }
    return absl::OkStatus();
  }

  absl::Status BenchPrompt(StepDriver& driver, int32_t tokens) {
    driver.Open(1, tokens + 1, [&](int32_t slot) { return TokensOf(slot, tokens); });
    std::vector<absl::Duration> rounds;
    for (int32_t round = 0; round <= options_.num_rounds; ++round) {
      const absl::Time start = MonotonicNow();
      RETURN_IF_ERROR(driver.PrefillAndDraw(0, tokens));
      if (round > 0) rounds.push_back(MonotonicNow() - start);
    }
    AddLine(fmt::format("prompt {}", tokens), tokens, rounds,
            facts_.roofline.PromptSeconds(facts_.ceilings.rates, options_.cluster.layout, tokens));
    return absl::OkStatus();
  }

  void AddLine(const std::string& what, int32_t tokens, const std::vector<absl::Duration>& times,
               double best) {
    const double median = Quantile(times, 0.5);
    text_ +=
        fmt::format("{:<20} {:>12.1f} {:>12.1f} {:>12.1f} {:>12.1f} {:>6.0f} %\n", what,
                    median * 1e6, Quantile(times, 0.99) * 1e6, static_cast<double>(tokens) / median,
                    best * 1e6, SharePercent(best, median));
    rows_.rows.push_back({what, static_cast<double>(tokens), median * 1e6,
                          Quantile(times, 0.99) * 1e6, static_cast<double>(tokens) / median,
                          best * 1e6, SharePercent(best, median)});
  }

  const BenchStepOptions options_;
  const ClusterFacts facts_;
  const int32_t batch_max_;
  const int32_t prompt_max_;
  const int32_t decode_tokens_;  // of one sequence, context and all that is drawn
  step::StepLimits limits_;
  std::unique_ptr<RankThreads> ranks_;
  std::string text_;
  TextTable rows_{.columns = {{"step", 0},
                              {"tokens", 0},
                              {"median_us", 1},
                              {"p99_us", 1},
                              {"tok_per_s", 1},
                              {"best_us", 1},
                              {"share_percent", 0}},
                  .rows = {}};
};

absl::Status Check(const BenchStepOptions& options) {
  for (const int32_t batch : options.batches) {
    if (batch < 1 || batch > limits::kMaxSequences) {
      return InvalidArgument("--batch: expected 1 to {}, got {}", limits::kMaxSequences, batch);
    }
  }
  for (const int32_t tokens : options.prompts) {
    if (tokens < 1) return InvalidArgument("--prompt: expected at least 1 token, got {}", tokens);
  }
  if (options.num_steps < 2 || options.context < 1 || options.num_rounds < 1) {
    return InvalidArgument("expected at least two steps and one token of context, got {} and {}",
                           options.num_steps, options.context);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunBenchStep(const BenchStepOptions& asked, std::string* table, TextTable* rows) {
  const BenchStepOptions options = WithDefaults(asked);
  RETURN_IF_ERROR(Check(options));
  ASSIGN_OR_RETURN(ClusterFacts facts, GatherFacts(options.cluster));
  StepBench bench(options, std::move(facts));
  ASSIGN_OR_RETURN(*table, bench.Run());
  if (rows != nullptr) *rows = bench.rows();
  return absl::OkStatus();
}

}  // namespace polyreme::bench
