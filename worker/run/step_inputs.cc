#include "worker/run/step_inputs.h"

#include <algorithm>

namespace polyreme::run {

StepPadding::StepPadding(const Device& device, const step::StepLimits& limits)
    : rows_(device.ReplayRows(
          std::min({limits.num_slots, limits.max_step_tokens, limits.max_step_samples}))) {}

StepSize StepPadding::SizeOf(const step::StepPlan& plan) const {
  const StepSize own{static_cast<int32_t>(plan.tokens.size()),
                     static_cast<int32_t>(plan.rows.size()),
                     static_cast<int32_t>(plan.samples.size())};
  if (own.num_rows == 0 || own.num_tokens != own.num_rows) return own;
  const auto padded = std::lower_bound(rows_.begin(), rows_.end(), own.num_rows);
  if (padded == rows_.end() || own.num_samples > *padded) return own;
  return {*padded, *padded, *padded, /*recorded=*/true};
}

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
                                  const step::SlotTable& slots, const StepSize& size) {
  UploadBlockTable(lane, plan, slots);
  WriteRows(plan, size);
  int32_t* const sample_tokens = sample_tokens_.host(plan.id);
  std::transform(plan.samples.begin(), plan.samples.end(), sample_tokens,
                 [](const step::Sample& sample) { return sample.token_index; });
  std::fill(sample_tokens + plan.samples.size(), sample_tokens + size.num_samples, 0);
  for (size_t i = 0; i < plan.copies.size(); ++i) {
    moves_.host(plan.id)[i] = {plan.copies[i].from.value, plan.copies[i].to.value};
  }
  positions_.Upload(lane, plan.id, 0, size.num_tokens);
  token_rows_.Upload(lane, plan.id, 0, size.num_tokens);
  row_begins_.Upload(lane, plan.id, 0, size.num_rows + 1);
  row_slots_.Upload(lane, plan.id, 0, size.num_rows);
  sample_tokens_.Upload(lane, plan.id, 0, size.num_samples);
  moves_.Upload(lane, plan.id, 0, std::ssize(plan.copies));

  const auto num_rows = static_cast<size_t>(size.num_rows);
  ops::StepBatch batch;
  batch.num_tokens = size.num_tokens;
  batch.num_rows = size.num_rows;
  batch.num_samples = size.num_samples;
  batch.tokens = tokens();
  batch.positions = positions_.device();
  batch.token_rows = token_rows_.device();
  batch.row_begins = row_begins_.device();
  batch.row_slots = row_slots_.device();
  batch.sample_tokens = sample_tokens_.device();
  batch.block_table = block_table_.device();
  batch.table_stride = table_stride_;
  batch.tokens_per_block = tokens_per_block_;
  batch.host_row_begins = {row_begins_.host(plan.id), num_rows + 1};
  batch.host_row_first_positions = {row_first_positions_.host(plan.id), num_rows};
  return batch;
}

// What the rows say, and rows of padding after them: one token each, at no position.
void StepInputs::WriteRows(const step::StepPlan& plan, const StepSize& size) {
  constexpr step::StepRow kPadding{.slot = SlotId{0}, .first_position = -1, .num_tokens = 1};
  int32_t token = 0;
  for (int32_t r = 0; r < size.num_rows; ++r) {
    const bool planned = r < std::ssize(plan.rows);
    const step::StepRow& row = planned ? plan.rows[static_cast<size_t>(r)] : kPadding;
    row_begins_.host(plan.id)[r] = token;
    row_slots_.host(plan.id)[r] = row.slot.value;
    row_first_positions_.host(plan.id)[r] = row.first_position;
    for (int32_t i = 0; i < row.num_tokens; ++i, ++token) {
      positions_.host(plan.id)[token] = row.first_position + i;
      token_rows_.host(plan.id)[token] = r;
    }
  }
  row_begins_.host(plan.id)[size.num_rows] = token;
  CHECK(token == size.num_tokens, "rows of {} tokens in a step of {}", token, size.num_tokens);
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
