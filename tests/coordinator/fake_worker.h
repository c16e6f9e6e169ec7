// A worker without a model: it keeps the slot table, checks every plan, and "computes" by writing
// each token into the cache it was told to use. What it draws is a hash of all tokens it finds
// there, so a block that was given away too early, or a position that was never written, changes
// the result.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "coordinator/sched/sequence.h"
#include "parallel/step/slot_table.h"
#include "parallel/step/step_plan.h"

namespace polyreme::sched {

// The model: the token after `tokens`.
TokenId NextToken(const std::vector<TokenId>& tokens, int32_t vocabulary);
// A log-probability for `target` after `tokens`.
float ScoreOf(const std::vector<TokenId>& tokens, TokenId target);

class FakeWorker {
 public:
  explicit FakeWorker(const step::StepLimits& limits);

  // Runs one step. The error of step::Validate, or Internal if the plan leads to a cache that was
  // never written.
  absl::StatusOr<step::StepResult> Run(const step::StepPlan& plan);
  const step::SlotTable& slots() const { return slots_; }
  // A prompt that contains this token has logits that are not finite.
  static constexpr TokenId kPoison = 13;

 private:
  absl::Status WriteRow(const step::StepPlan& plan, const step::StepRow& row, int32_t first_index);
  // What the cache holds for positions [0, end) of `slot`.
  absl::StatusOr<std::vector<TokenId>> ReadBack(SlotId slot, int32_t end) const;
  size_t Place(SlotId slot, int32_t position) const;

  const step::StepLimits limits_;
  step::SlotTable slots_;
  std::vector<TokenId> cache_;                     // [block][offset]; -1: never written
  std::map<int64_t, std::vector<TokenId>> drawn_;  // by step: what its samples gave
};

}  // namespace polyreme::sched
