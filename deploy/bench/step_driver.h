// Makes plans by hand and keeps a few steps in flight: for measuring steps, where the schedule is
// not what is measured.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "deploy/bench/rank_threads.h"
#include "parallel/base/status.h"
#include "parallel/step/step_plan.h"

namespace polyreme::bench {

class StepDriver {
 public:
  // `ranks` is borrowed. Step ids count from 0: one driver per RankThreads.
  StepDriver(RankThreads& ranks, const step::StepLimits& limits) : ranks_(ranks), limits_(limits) {}

  // Closes every slot and opens num_slots anew, each with `tokens_of(slot)` and blocks for
  // `capacity` tokens. Nothing is computed; part of the next step.
  void Open(int32_t num_slots, int32_t capacity,
            const std::function<std::vector<TokenId>(int32_t slot)>& tokens_of,
            const step::SamplingParams& sampling = {.temperature = 0});

  // Computes the first `tokens` of each of the first num_slots, as many at once as the limits
  // allow, and draws nothing. Returns when all is computed.
  absl::Status Prefill(int32_t num_slots, int32_t tokens);
  // The same of one slot, and draws after its last token: a prompt as it is served.
  absl::Status PrefillAndDraw(int32_t slot, int32_t tokens);
  // Draws num_steps tokens for each of the first `batch` slots, from position `context` on, which
  // may have been drawn before. Slots are dealt into `cohorts`, whose steps take turns. One
  // duration for each step of all slots after the first: from its last cohort's answer to the
  // next's.
  absl::StatusOr<std::vector<absl::Duration>> Decode(int32_t batch, int32_t context,
                                                     int32_t num_steps, int32_t cohorts);
  // Computes slot 0's tokens and returns the log-probability of each token but the first, then the
  // draw after the last.
  absl::StatusOr<std::vector<step::SampleResult>> Score(absl::Span<const TokenId> tokens);

 private:
  step::StepPlan NewPlan();
  // Adds what is to be opened and closed, then waits until fewer than max_steps_in_flight run.
  absl::Status Submit(step::StepPlan plan);
  absl::Status Await();
  absl::Status Drain();
  void AddRow(step::StepPlan& plan, int32_t slot, int32_t first, int32_t tokens) const;

  RankThreads& ranks_;
  const step::StepLimits limits_;
  int64_t next_step_ = 0;
  int64_t next_sequence_ = 1;
  std::vector<std::vector<TokenId>> tokens_;  // by slot
  std::vector<step::SlotOpen> to_open_;
  std::vector<SlotId> to_close_;
  int32_t in_flight_ = 0;
  std::vector<absl::Time> answered_;         // when each step since the last clear was
  std::vector<step::SampleResult> samples_;  // of all steps since the last clear
};

}  // namespace polyreme::bench
