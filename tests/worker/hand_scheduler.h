// A coordinator in fifty lines: turns requests of known length into plans, in whatever way a test
// wants to see that it makes no difference.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "deploy/bench/rank_threads.h"
#include "parallel/base/status.h"
#include "parallel/step/step_plan.h"

namespace polyreme::run {

using bench::RankThreads;
using bench::RankThreadsOptions;

struct HandRequest {
  std::vector<TokenId> prompt;
  int32_t num_outputs = 8;
  step::SamplingParams sampling;
  bool scores_prompt = false;  // a kScore sample at each prompt position but the last
  int32_t num_choices = 1;     // the others are forks, choices 1, 2, ...
};

// How requests become steps.
struct HandPolicy {
  int32_t chunk = 1000;     // prompt tokens of one row
  int32_t depth = 1;        // steps in flight
  int32_t cohorts = 1;      // sequences are dealt into so many, a step carries one
  bool alone = false;       // one request after another
  uint64_t block_seed = 1;  // which blocks a sequence gets
};

// One generated sequence.
struct HandOutput {
  std::vector<step::SampleResult> outputs;
  std::vector<step::SampleResult> prompt_scores;
  friend bool operator==(const HandOutput&, const HandOutput&) = default;
};

// Whoever takes plans and gives results, in order.
struct HandRanks {
  std::function<absl::Status(const step::StepPlan&)> submit;
  std::function<absl::StatusOr<step::StepResult>()> await;
  int64_t first_step = 0;  // the next plan's id
};

// The outputs of each request's choices, by request and choice. Fails if a step does.
absl::StatusOr<std::vector<HandOutput>> RunByHand(const HandRanks& ranks,
                                                  const step::StepLimits& limits,
                                                  const std::vector<HandRequest>& requests,
                                                  const HandPolicy& policy);
absl::StatusOr<std::vector<HandOutput>> RunByHand(RankThreads& ranks,
                                                  const step::StepLimits& limits,
                                                  const std::vector<HandRequest>& requests,
                                                  const HandPolicy& policy);

}  // namespace polyreme::run
