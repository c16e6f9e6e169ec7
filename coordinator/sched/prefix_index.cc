#include "coordinator/sched/prefix_index.h"

#include <bit>

#include "parallel/base/status.h"

namespace polyreme::sched {

PrefixIndex::PrefixIndex(int32_t num_blocks) {
  CHECK(num_blocks > 0);
  const size_t count = static_cast<size_t>(num_blocks);
  keys_.resize(count);
  place_.assign(count, -1);
  table_.assign(std::bit_ceil(2 * count), -1);
  mask_ = static_cast<int32_t>(table_.size() - 1);
}

int32_t PrefixIndex::PlaceOf(const BlockKey& key) const {
  // The key is a keyed hash: any of its bits will do.
  int32_t place = static_cast<int32_t>(key.low & static_cast<uint64_t>(mask_));
  while (true) {
    const int32_t block = table_[static_cast<size_t>(place)];
    if (block < 0 || keys_[static_cast<size_t>(block)] == key) return place;
    place = (place + 1) & mask_;
  }
}

std::optional<BlockId> PrefixIndex::Find(const BlockKey& key) const {
  const int32_t block = table_[static_cast<size_t>(PlaceOf(key))];
  if (block < 0) return std::nullopt;
  return BlockId{block};
}

bool PrefixIndex::Insert(const BlockKey& key, BlockId block) {
  CHECK(!Contains(block), "block {} has a key", block.value);
  const int32_t place = PlaceOf(key);
  int32_t& entry = table_[static_cast<size_t>(place)];
  if (entry >= 0) return false;
  entry = block.value;
  keys_[static_cast<size_t>(block.value)] = key;
  place_[static_cast<size_t>(block.value)] = place;
  ++size_;
  return true;
}

void PrefixIndex::Remove(BlockId block) {
  CHECK(Contains(block), "block {} has no key", block.value);
  int32_t hole = place_[static_cast<size_t>(block.value)];
  place_[static_cast<size_t>(block.value)] = -1;
  --size_;
  // Entries behind the hole move up if they belong at or before it, so that no probe stops short.
  for (int32_t place = (hole + 1) & mask_; table_[static_cast<size_t>(place)] >= 0;
       place = (place + 1) & mask_) {
    const int32_t moved = table_[static_cast<size_t>(place)];
    const int32_t home =
        static_cast<int32_t>(keys_[static_cast<size_t>(moved)].low & static_cast<uint64_t>(mask_));
    if (((place - home) & mask_) < ((place - hole) & mask_)) continue;
    table_[static_cast<size_t>(hole)] = moved;
    place_[static_cast<size_t>(moved)] = hole;
    hole = place;
  }
  table_[static_cast<size_t>(hole)] = -1;
}

}  // namespace polyreme::sched
