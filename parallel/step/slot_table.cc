#include "parallel/step/slot_table.h"

#include <algorithm>

namespace polyreme::step {

int32_t NumForkedBlocks(int32_t num_prompt_tokens, int32_t num_blocks, int32_t tokens_per_block) {
  return std::min(num_prompt_tokens / tokens_per_block, num_blocks);
}

int32_t MaxFirstPosition(int32_t num_blocks, int32_t num_tokens, int32_t tokens_per_block) {
  // At least the last known token has to be run for anything to be drawn.
  const int64_t covered = int64_t{num_blocks} * tokens_per_block;
  return static_cast<int32_t>(std::min<int64_t>(covered, num_tokens - 1));
}

SlotTable::SlotTable(const StepLimits& limits) : tokens_per_block_(limits.tokens_per_block) {
  CHECK(limits.num_slots >= 0 && limits.tokens_per_block > 0);
  slots_.resize(static_cast<size_t>(limits.num_slots));
  const int64_t longest =
      (int64_t{limits.max_model_len} + limits.tokens_per_block - 1) / limits.tokens_per_block;
  const int64_t capacity = std::min<int64_t>(longest, limits.num_blocks);
  for (Slot& slot : slots_) slot.blocks.reserve(static_cast<size_t>(capacity));
}

bool SlotTable::IsOpen(SlotId slot) const {
  return slot.value >= 0 && slot.value < num_slots() && at(slot).open;
}

SlotTable::Slot& SlotTable::mutable_at(SlotId slot) {
  CHECK(IsOpen(slot), "slot {} is not open", slot.value);
  return slots_[static_cast<size_t>(slot.value)];
}

void SlotTable::Apply(const StepPlan& plan) {
  CHECK(plan.id.value == last_step_.value + 1, "step {} after step {}", plan.id.value,
        last_step_.value);
  for (const SlotId slot : plan.closed) Close(slot);
  for (const SlotOpen& opened : plan.opened) Open(opened);
  for (const SlotAppend& append : plan.appended) {
    std::vector<BlockId>& blocks = mutable_at(append.slot).blocks;
    blocks.insert(blocks.end(), append.blocks.begin(), append.blocks.end());
  }
  ApplyRowsAndSamples(plan);
  last_step_ = plan.id;
}

// Keeps the vectors' memory: the next one to live here needs it again.
void SlotTable::Close(SlotId id) {
  Slot& slot = mutable_at(id);
  slot.open = false;
  slot.sequence = {};
  slot.forked_from.reset();
  slot.blocks.clear();
  slot.sampling = {};
  slot.tokens.clear();
  slot.num_prompt_tokens = 0;
  slot.num_positions = 0;
  slot.last_draw.reset();
  --num_open_;
}

void SlotTable::Open(const SlotOpen& opened) {
  CHECK(opened.slot.value >= 0 && opened.slot.value < num_slots() && !at(opened.slot).open,
        "slot {} cannot be opened", opened.slot.value);
  Slot& slot = slots_[static_cast<size_t>(opened.slot.value)];
  if (opened.fork_of.has_value()) {
    const Slot& origin = mutable_at(*opened.fork_of);
    const int32_t num_blocks = NumForkedBlocks(
        origin.num_prompt_tokens, static_cast<int32_t>(origin.blocks.size()), tokens_per_block_);
    slot.forked_from = origin.sequence;
    slot.blocks.assign(origin.blocks.begin(), origin.blocks.begin() + num_blocks);
    slot.tokens.assign(origin.tokens.begin(), origin.tokens.begin() + origin.num_prompt_tokens);
  }
  slot.open = true;
  slot.sequence = opened.sequence;
  slot.blocks.insert(slot.blocks.end(), opened.blocks.begin(), opened.blocks.end());
  slot.sampling = opened.sampling;
  slot.tokens.insert(slot.tokens.end(), opened.tokens.begin(), opened.tokens.end());
  slot.num_prompt_tokens = opened.num_prompt_tokens;
  slot.num_positions =
      MaxFirstPosition(static_cast<int32_t>(slot.blocks.size()),
                       static_cast<int32_t>(slot.tokens.size()), tokens_per_block_);
  ++num_open_;
}

void SlotTable::ApplyRowsAndSamples(const StepPlan& plan) {
  for (const StepRow& row : plan.rows) {
    mutable_at(row.slot).num_positions = row.first_position + row.num_tokens;
  }
  finder_.Reset(plan);
  for (size_t i = 0; i < plan.samples.size(); ++i) {
    const Sample& sample = plan.samples[i];
    if (sample.kind != Sample::Kind::kDraw) continue;
    Slot& slot = mutable_at(sample.slot);
    // A fork may draw from the row of its origin; either way it goes on after the token it drew
    // from.
    slot.num_positions = finder_.PositionOf(sample.token_index) + 1;
    slot.last_draw = Draw{{plan.id, static_cast<int32_t>(i)}, slot.num_positions};
  }
}

}  // namespace polyreme::step
