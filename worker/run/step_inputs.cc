#include "worker/run/step_inputs.h"

namespace polyreme::run {

absl::StatusOr<StepInputs> StepInputs::Make(Device& device, const step::StepLimits& limits) {
  const int32_t buffers = NumStepBuffers(limits.max_steps_in_flight);
  const int64_t num_tokens = limits.max_step_tokens;
  const int64_t num_slots = limits.num_slots;
  using Array = StagedArray<int32_t>;
  StepInputs inputs;
  inputs.tokens_per_block_ = limits.tokens_per_block;
  inputs.table_stride_ =
      (limits.max_model_len + limits.tokens_per_block - 1) / limits.tokens_per_block;
  ASSIGN_OR_RETURN(inputs.tokens_, device.Allocate(num_tokens * int64_t{sizeof(int32_t)}));
  ASSIGN_OR_RETURN(inputs.positions_, Array::Make(device, num_tokens, buffers));
  ASSIGN_OR_RETURN(inputs.token_rows_, Array::Make(device, num_tokens, buffers));
  ASSIGN_OR_RETURN(inputs.row_begins_, Array::Make(device, num_slots + 1, buffers));
  ASSIGN_OR_RETURN(inputs.row_slots_, Array::Make(device, num_slots, buffers));
  ASSIGN_OR_RETURN(inputs.row_first_positions_, Array::Make(device, num_slots, buffers));
  ASSIGN_OR_RETURN(inputs.sample_tokens_, Array::Make(device, limits.max_step_samples, buffers));
  ASSIGN_OR_RETURN(inputs.block_table_,
                   Array::Make(device, num_slots * inputs.table_stride_, buffers));
  ASSIGN_OR_RETURN(inputs.moves_, StagedArray<ops::BlockMove>::Make(device, num_slots, buffers));
  return inputs;
}

ops::StepBatch StepInputs::Upload(Lane& lane, const step::StepPlan& plan,
                                  const step::SlotTable& slots) {
  UploadBlockTable(lane, plan, slots);
  const int64_t num_tokens = std::ssize(plan.tokens);
  const int64_t num_rows = std::ssize(plan.rows);
  const int64_t num_samples = std::ssize(plan.samples);
  int32_t token = 0;
  for (int32_t r = 0; r < num_rows; ++r) {
    const step::StepRow& row = plan.rows[static_cast<size_t>(r)];
    row_begins_.host(plan.id)[r] = token;
    row_slots_.host(plan.id)[r] = row.slot.value;
    row_first_positions_.host(plan.id)[r] = row.first_position;
    for (int32_t i = 0; i < row.num_tokens; ++i, ++token) {
      positions_.host(plan.id)[token] = row.first_position + i;
      token_rows_.host(plan.id)[token] = r;
    }
  }
  row_begins_.host(plan.id)[num_rows] = token;
  for (int64_t i = 0; i < num_samples; ++i) {
    sample_tokens_.host(plan.id)[i] = plan.samples[static_cast<size_t>(i)].token_index;
  }
  for (size_t i = 0; i < plan.copies.size(); ++i) {
    moves_.host(plan.id)[i] = {plan.copies[i].from.value, plan.copies[i].to.value};
  }
  positions_.Upload(lane, plan.id, 0, num_tokens);
  token_rows_.Upload(lane, plan.id, 0, num_tokens);
  row_begins_.Upload(lane, plan.id, 0, num_rows + 1);
  row_slots_.Upload(lane, plan.id, 0, num_rows);
  sample_tokens_.Upload(lane, plan.id, 0, num_samples);
  moves_.Upload(lane, plan.id, 0, std::ssize(plan.copies));

  ops::StepBatch batch;
  batch.num_tokens = static_cast<int32_t>(num_tokens);
  batch.num_rows = static_cast<int32_t>(num_rows);
  batch.num_samples = static_cast<int32_t>(num_samples);
  batch.tokens = tokens();
  batch.positions = positions_.device();
  batch.token_rows = token_rows_.device();
  batch.row_begins = row_begins_.device();
  batch.row_slots = row_slots_.device();
  batch.sample_tokens = sample_tokens_.device();
  batch.block_table = block_table_.device();
  batch.table_stride = table_stride_;
  batch.tokens_per_block = tokens_per_block_;
  batch.host_row_begins = {row_begins_.host(plan.id), static_cast<size_t>(num_rows) + 1};
  batch.host_row_first_positions = {row_first_positions_.host(plan.id),
                                    static_cast<size_t>(num_rows)};
  return batch;
}

void StepInputs::UploadBlockTable(Lane& lane, const step::StepPlan& plan,
                                  const step::SlotTable& slots) {
  for (const step::SlotOpen& opened : plan.opened) {
    UploadBlocks(lane, plan.id, opened.slot, slots, 0);
  }
  for (const step::SlotAppend& append : plan.appended) {
    const int64_t first = std::ssize(slots.at(append.slot).blocks) - std::ssize(append.blocks);
    UploadBlocks(lane, plan.id, append.slot, slots, first);
  }
}

void StepInputs::UploadBlocks(Lane& lane, StepId step, SlotId slot, const step::SlotTable& slots,
                              int64_t first) {
  const std::vector<BlockId>& blocks = slots.at(slot).blocks;
  const int64_t row = int64_t{slot.value} * table_stride_;
  int32_t* const host = block_table_.host(step) + row;
  for (int64_t i = first; i < std::ssize(blocks); ++i) {
    host[i] = blocks[static_cast<size_t>(i)].value;
  }
  block_table_.Upload(lane, step, row + first, std::ssize(blocks) - first);
}

}  // namespace polyreme::run
