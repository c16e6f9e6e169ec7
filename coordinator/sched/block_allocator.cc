#include "coordinator/sched/block_allocator.h"

#include "parallel/base/status.h"

namespace polyreme::sched {

BlockAllocator::BlockAllocator(int32_t num_blocks, int32_t tokens_per_block)
    : tokens_per_block_(tokens_per_block) {
  CHECK(num_blocks > 0 && tokens_per_block > 0, "{} blocks of {} tokens", num_blocks,
        tokens_per_block);
  references_.assign(static_cast<size_t>(num_blocks), 0);
  free_.reserve(references_.size());
  for (int32_t i = num_blocks - 1; i >= 0; --i) free_.push_back(BlockId{i});
}

int32_t& BlockAllocator::ReferencesOf(BlockId block) {
  CHECK(block.value >= 0 && block.value < num_blocks(), "block {}", block.value);
  return references_[static_cast<size_t>(block.value)];
}

std::optional<BlockId> BlockAllocator::Take() {
  if (free_.empty()) return std::nullopt;
  const BlockId block = free_.back();
  free_.pop_back();
  ReferencesOf(block) = 1;
  return block;
}

void BlockAllocator::Share(BlockId block) {
  int32_t& references = ReferencesOf(block);
  CHECK(references > 0, "block {} is free", block.value);
  ++references;
}

void BlockAllocator::Release(BlockId block) {
  int32_t& references = ReferencesOf(block);
  CHECK(references > 0, "block {} is free", block.value);
  if (--references == 0) free_.push_back(block);
}

}  // namespace polyreme::sched
