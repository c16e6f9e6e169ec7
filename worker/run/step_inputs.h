// What a step brings, as arrays on the device: its rows and samples, and the block table, which
// only ever gets changes.
#pragma once

#include <cstdint>

#include "parallel/base/status.h"
#include "parallel/step/slot_table.h"
#include "parallel/step/step_plan.h"
#include "parallel/tensor/device.h"
#include "worker/ops/batch.h"
#include "worker/run/staged_array.h"

namespace polyreme::run {

class StepInputs {
 public:
  // Takes all its memory now, for steps as large as `limits` allow.
  static absl::StatusOr<StepInputs> Make(Device& device, const step::StepLimits& limits);

  // plan: valid, and applied to `slots`. All but the tokens, which TokenFeedback fetches:
  // batch.tokens points to tokens(). The batch stays until the next Upload on the device, its host
  // spans until the step is collected.
  ops::StepBatch Upload(Lane& lane, const step::StepPlan& plan, const step::SlotTable& slots);

  int32_t* tokens() const { return static_cast<int32_t*>(tokens_.data()); }  // [T] on the device
  const ops::BlockMove* moves() const { return moves_.device(); }  // of the last plan uploaded

 private:
  StepInputs() = default;
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
