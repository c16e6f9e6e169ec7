// What a step brings, as arrays on the device: its rows and samples, and the block table, which
// only ever gets changes.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/base/status.h"
#include "parallel/step/slot_table.h"
#include "parallel/step/step_plan.h"
#include "parallel/tensor/device.h"
#include "worker/ops/batch.h"
#include "worker/run/staged_array.h"

namespace polyreme::run {

// How many tokens, rows and samples a step's arrays are made to have: the plan's own or, where the
// step is replayed, the same padded number of each, of which padding comes last.
struct StepSize {
  int32_t num_tokens = 0;   // T
  int32_t num_rows = 0;     // R
  int32_t num_samples = 0;  // S
  bool recorded = false;    // padded; equal sizes do equal work
};

// Which steps are recorded, and how large they are made. Every rank works out the same from the
// plan.
class StepPadding {
 public:
  StepPadding() = default;  // pads nothing
  StepPadding(const Device& device, const step::StepLimits& limits);
  // A step is padded if each row is one token and the next padded number of rows holds its samples
  // too.
  StepSize SizeOf(const step::StepPlan& plan) const;
  // Ascending; empty where nothing is recorded.
  const std::vector<int32_t>& rows() const { return rows_; }

 private:
  std::vector<int32_t> rows_;
};

class StepInputs {
 public:
  // Takes all its memory now, for steps as large as `limits` allow.
  static absl::StatusOr<StepInputs> Make(Device& device, const step::StepLimits& limits);

  // plan: valid, and applied to `slots`. All but the tokens, which TokenFeedback fetches:
  // batch.tokens points to tokens(). The batch stays until the next Upload on the device, its host
  // spans until the step is collected. Device addresses are the same for each step.
  ops::StepBatch Upload(Lane& lane, const step::StepPlan& plan, const step::SlotTable& slots,
                        const StepSize& size);

  int32_t* tokens() const { return static_cast<int32_t*>(tokens_.data()); }  // [T] on the device
  const ops::BlockMove* moves() const { return moves_.device(); }  // of the last plan uploaded

 private:
  StepInputs() = default;
  void WriteRows(const step::StepPlan& plan, const StepSize& size);
  void UploadBlockTable(Lane& lane, const step::StepPlan& plan, const step::SlotTable& slots);
  // Blocks from `first` on of one slot's list.
  void UploadBlocks(Lane& lane, StepId step, SlotId slot, const step::SlotTable& slots,
                    int64_t first);

  int32_t tokens_per_block_ = 0;
  int32_t table_stride_ = 0;
  Buffer tokens_;
  StagedArray<int32_t> positions_;            // [T]
  StagedArray<int32_t> token_rows_;           // [T]
  StagedArray<int32_t> row_begins_;           // [R + 1]
  StagedArray<int32_t> row_slots_;            // [R]
  StagedArray<int32_t> row_first_positions_;  // [R]
  StagedArray<int32_t> sample_tokens_;        // [S]
  StagedArray<int32_t> block_table_;          // [slots, table_stride]
  StagedArray<ops::BlockMove> moves_;
};

}  // namespace polyreme::run
