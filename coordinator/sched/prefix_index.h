// Finds the block that holds what a key names.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "coordinator/sched/block_key.h"
#include "parallel/base/ids.h"

namespace polyreme::sched {

// A hash table from keys to blocks and back: at most one key per block and one block per key. Pure;
// one thread. Allocates nothing after construction, and never moves more than a few entries.
class PrefixIndex {
 public:
  // For blocks 0 .. num_blocks - 1; num_blocks > 0.
  explicit PrefixIndex(int32_t num_blocks);

  std::optional<BlockId> Find(const BlockKey& key) const;
  // `block` has no key. False, and nothing changes, if `key` names another block already.
  bool Insert(const BlockKey& key, BlockId block);
  // `block` has a key.
  void Remove(BlockId block);
  bool Contains(BlockId block) const { return place_[static_cast<size_t>(block.value)] >= 0; }
  int32_t size() const { return size_; }

 private:
  // Where `key` is, or else the empty place where it belongs.
  int32_t PlaceOf(const BlockKey& key) const;

  std::vector<BlockKey> keys_;  // [block]
  std::vector<int32_t> place_;  // [block]: in table_; -1: it has no key
  std::vector<int32_t> table_;  // blocks, linear probing; -1: empty. At most half full.
  int32_t mask_;                // table_.size() - 1, and that is a power of two
  int32_t size_ = 0;
};

}  // namespace polyreme::sched
