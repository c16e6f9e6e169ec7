// What the plans so far have opened: per slot its blocks, sampling and tokens. A pure state machine, applied alike by
// the coordinator and every worker; a new epoch starts with an empty one.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "parallel/base/ids.h"
#include "parallel/step/step_plan.h"

namespace polyreme::step {

class SlotTable {
 public:
  struct Slot {
    bool open = false;
    SequenceId sequence;
    std::vector<BlockId> blocks;
    SamplingParams sampling;
    std::vector<TokenId> tokens;     // prompt and output known to the plans; drawn tokens are added by RecordDraw
    int32_t num_prompt_tokens = 0;
    int32_t num_positions = 0;       // positions that rows have written or are writing
  };

  explicit SlotTable(const StepLimits& limits);

  // Applies what a valid plan says, in the order closes, opens, appends, rows. CHECKs what Validate promises.
  void Apply(const StepPlan& plan);
  // A token was drawn for this slot (workers that sample; the coordinator at commit): penalties count it from now on.
  void RecordDraw(SlotId slot, TokenId token);

  const Slot& at(SlotId slot) const { return slots_[static_cast<size_t>(slot.value)]; }
  bool IsOpen(SlotId slot) const;
  int32_t num_slots() const { return static_cast<int32_t>(slots_.size()); }
  int32_t num_open() const { return num_open_; }
  // The id of the last plan applied, or -1: plans come in order without gaps.
  StepId last_step() const { return last_step_; }

 private:
  std::vector<Slot> slots_;
  int32_t num_open_ = 0;
  StepId last_step_{-1};
};

}  // namespace polyreme::step
