// What the plans so far have opened: per slot its blocks, sampling and tokens. A pure state
// machine, applied alike by the coordinator and every worker, and changed by nothing but plans; a
// new epoch starts with an empty one.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "parallel/base/ids.h"
#include "parallel/step/step_plan.h"

namespace polyreme::step {

class SlotTable {
 public:
  // The latest token drawn for a slot: where it comes from, and its position in the sequence.
  struct Draw {
    TokenSource source;
    int32_t position = 0;
    friend bool operator==(const Draw&, const Draw&) = default;
  };
  struct Slot {
    bool open = false;
    SequenceId sequence;
    std::optional<SequenceId> forked_from;
    std::vector<BlockId> blocks;
    SamplingParams sampling;
    std::vector<TokenId> tokens;  // what it was opened with: prompt and committed output
    int32_t num_prompt_tokens = 0;
    // Where the next row starts at the latest: the end of the row before. Without one, what its
    // first blocks cover, since only the coordinator knows how far a cached prefix is filled.
    int32_t num_positions = 0;
    std::optional<Draw> last_draw;
    friend bool operator==(const Slot&, const Slot&) = default;
  };

  // Takes memory for every slot's block list, so that appending later takes none.
  explicit SlotTable(const StepLimits& limits);

  // Applies what a valid plan says, in the order closes, opens, appends, rows, samples. CHECKs what
  // Validate promises.
  void Apply(const StepPlan& plan);

  const Slot& at(SlotId slot) const { return slots_[static_cast<size_t>(slot.value)]; }
  bool IsOpen(SlotId slot) const;
  int32_t num_slots() const { return static_cast<int32_t>(slots_.size()); }
  int32_t num_open() const { return num_open_; }
  // The id of the last plan applied, or -1: plans come in order without gaps.
  StepId last_step() const { return last_step_; }
  friend bool operator==(const SlotTable& a, const SlotTable& b) {
    return a.slots_ == b.slots_ && a.num_open_ == b.num_open_ && a.last_step_ == b.last_step_;
  }

 private:
  Slot& mutable_at(SlotId slot);
  void Close(SlotId slot);
  void Open(const SlotOpen& opened);
  void ApplyRowsAndSamples(const StepPlan& plan);

  int32_t tokens_per_block_ = 0;
  std::vector<Slot> slots_;
  int32_t num_open_ = 0;
  StepId last_step_{-1};
  RowFinder finder_;
};

// How many blocks a fork takes over from a slot with so many prompt tokens and blocks: those the
// prompt fills wholly.
int32_t NumForkedBlocks(int32_t num_prompt_tokens, int32_t num_blocks, int32_t tokens_per_block);
// Where the first row of a slot opened with so many blocks and tokens may start at the latest.
int32_t MaxFirstPosition(int32_t num_blocks, int32_t num_tokens, int32_t tokens_per_block);

}  // namespace polyreme::step
