#include "coordinator/sched/block_allocator.h"

#include "parallel/base/status.h"

namespace polyreme::sched {

BlockAllocator::BlockAllocator(int32_t num_blocks, int32_t tokens_per_block)
    : tokens_per_block_(tokens_per_block), index_(num_blocks) {
  CHECK(num_blocks > 0 && tokens_per_block > 0, "{} blocks of {} tokens", num_blocks,
        tokens_per_block);
  references_.assign(static_cast<size_t>(num_blocks), 0);
  free_.reserve(references_.size());
  for (int32_t i = num_blocks - 1; i >= 0; --i) free_.push_back(BlockId{i});
  ring_.resize(references_.size() + 1);
  ring_.back() = {num_blocks, num_blocks};
}

int32_t& BlockAllocator::ReferencesOf(BlockId block) {
  CHECK(block.value >= 0 && block.value < num_blocks(), "block {}", block.value);
  return references_[static_cast<size_t>(block.value)];
}

void BlockAllocator::LinkYoungest(BlockId block) {
  Links& end = ring_.back();
  ring_[static_cast<size_t>(block.value)] = {end.previous, num_blocks()};
  ring_[static_cast<size_t>(end.previous)].next = block.value;
  end.previous = block.value;
  ++num_cached_;
}

void BlockAllocator::Unlink(BlockId block) {
  const Links links = ring_[static_cast<size_t>(block.value)];
  ring_[static_cast<size_t>(links.previous)].next = links.next;
  ring_[static_cast<size_t>(links.next)].previous = links.previous;
  --num_cached_;
}

std::optional<BlockId> BlockAllocator::Take() {
  BlockId block;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else if (num_cached_ > 0) {
    block = BlockId{ring_.back().next};
    Unlink(block);
    index_.Remove(block);
  } else {
    return std::nullopt;
  }
  ReferencesOf(block) = 1;
  return block;
}

void BlockAllocator::Share(BlockId block) {
  int32_t& references = ReferencesOf(block);
  if (references == 0) {
    CHECK(index_.Contains(block), "block {} is free", block.value);
    Unlink(block);
  }
  ++references;
}

void BlockAllocator::Release(BlockId block) {
  int32_t& references = ReferencesOf(block);
  CHECK(references > 0, "block {} is free", block.value);
  if (--references > 0) return;
  if (index_.Contains(block)) {
    LinkYoungest(block);
  } else {
    free_.push_back(block);
  }
}

void BlockAllocator::Publish(const BlockKey& key, BlockId block) {
  CHECK(ReferencesOf(block) > 0, "block {} is free", block.value);
  if (!index_.Contains(block)) index_.Insert(key, block);
}

void BlockAllocator::Forget(BlockId block) {
  const bool is_free = ReferencesOf(block) == 0;
  if (!index_.Contains(block)) return;
  index_.Remove(block);
  if (!is_free) return;
  Unlink(block);
  free_.push_back(block);
}

void BlockAllocator::ForgetAll() {
  // The lowest last, so that they are taken in order.
  for (int32_t i = num_blocks() - 1; i >= 0; --i) Forget(BlockId{i});
}

}  // namespace polyreme::sched
