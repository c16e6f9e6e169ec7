// Block ids with reference counts, and the cache of blocks that nobody refers to any more. Knows
// nothing of memory: block 17 means the same logical block on every worker.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "coordinator/sched/block_key.h"
#include "coordinator/sched/prefix_index.h"
#include "parallel/base/ids.h"

namespace polyreme::sched {

// A block is free, or referred to; if it has been published under a key, it can be found by that
// key in both states, until it is taken for something else. Pure; one thread. Allocates nothing
// after construction.
class BlockAllocator {
 public:
  // Both > 0.
  BlockAllocator(int32_t num_blocks, int32_t tokens_per_block);

  // A free block with one reference and no key; nullopt if there is none. Of those without a key
  // the one freed last is taken first; then, of those with one, the one freed longest ago.
  std::optional<BlockId> Take();
  // One reference more; `block` has at least one, or a key.
  void Share(BlockId block);
  // One reference less; the last one frees the block.
  void Release(BlockId block);

  // `block`, which is referred to and full, can be found from now on. Nothing happens if another
  // block is known under this key, or this one under another.
  void Publish(const BlockKey& key, BlockId block);
  // The block published under this key. It may be free: Share it before anything is taken.
  std::optional<BlockId> Find(const BlockKey& key) const { return index_.Find(key); }
  // What the block holds is not to be trusted: nobody finds it any more. Legal without a key.
  void Forget(BlockId block);
  void ForgetAll();

  // Blocks nobody refers to, those with a key included.
  int32_t num_free() const { return static_cast<int32_t>(free_.size()) + num_cached_; }
  // Free blocks with a key.
  int32_t num_cached() const { return num_cached_; }
  int32_t num_blocks() const { return static_cast<int32_t>(references_.size()); }
  int32_t tokens_per_block() const { return tokens_per_block_; }
  int32_t references(BlockId block) const { return references_[static_cast<size_t>(block.value)]; }
  // Blocks that hold `num_tokens` >= 0 positions.
  int32_t BlocksFor(int32_t num_tokens) const {
    return num_tokens / tokens_per_block_ + (num_tokens % tokens_per_block_ != 0 ? 1 : 0);
  }

 private:
  // A ring through the cached blocks, oldest first, that begins and ends at the entry past the last
  // block.
  struct Links {
    int32_t previous = 0;
    int32_t next = 0;
  };

  int32_t& ReferencesOf(BlockId block);
  void LinkYoungest(BlockId block);
  void Unlink(BlockId block);

  const int32_t tokens_per_block_;
  std::vector<int32_t> references_;
  std::vector<BlockId> free_;  // without a key; a stack
  PrefixIndex index_;
  std::vector<Links> ring_;  // [block], and the ring's begin and end
  int32_t num_cached_ = 0;
};

}  // namespace polyreme::sched
