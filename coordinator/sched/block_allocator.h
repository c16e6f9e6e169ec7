// Block ids with reference counts. Knows nothing of memory: block 17 means the same logical block
// on every worker.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "parallel/base/ids.h"

namespace polyreme::sched {

// Pure; one thread. Allocates nothing after construction.
class BlockAllocator {
 public:
  // Both > 0.
  BlockAllocator(int32_t num_blocks, int32_t tokens_per_block);

  // A free block with one reference; nullopt if there is none. The block freed last is taken first.
  std::optional<BlockId> Take();
  // One reference more; `block` has at least one.
  void Share(BlockId block);
  // One reference less; the last one frees the block.
  void Release(BlockId block);

  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_blocks() const { return static_cast<int32_t>(references_.size()); }
  int32_t tokens_per_block() const { return tokens_per_block_; }
  int32_t references(BlockId block) const { return references_[static_cast<size_t>(block.value)]; }
  // Blocks that hold `num_tokens` >= 0 positions.
  int32_t BlocksFor(int32_t num_tokens) const {
    return num_tokens / tokens_per_block_ + (num_tokens % tokens_per_block_ != 0 ? 1 : 0);
  }

 private:
  int32_t& ReferencesOf(BlockId block);

  const int32_t tokens_per_block_;
  std::vector<int32_t> references_;
  std::vector<BlockId> free_;  // a stack
};

}  // namespace polyreme::sched
