// Numbers that name things. Each is a distinct type, so that a slot can never be passed as a block.
#pragma once

#include <compare>
#include <cstdint>
#include <utility>

namespace polyreme {

// A strongly typed integer: ordered, hashable by abseil, nothing else. `Tag` only tells types
// apart.
template <class Tag, class Int>
struct Id {
  using value_type = Int;
  Int value = 0;

  friend constexpr auto operator<=>(const Id&, const Id&) = default;
  template <class H>
  friend H AbslHashValue(H h, const Id& id) {
    return H::combine(std::move(h), id.value);
  }
};

using Rank = Id<struct RankTag, int32_t>;    // a worker process, 0 .. world_size - 1
using StepId = Id<struct StepTag, int64_t>;  // one forward pass; grows by one within an epoch
using Epoch = Id<struct EpochTag, int64_t>;  // one life of the process group
using SequenceId = Id<struct SequenceTag, int64_t>;  // one generation; never reused
using SlotId = Id<struct SlotTag, int32_t>;          // a sequence as the workers know it; reused
using BlockId = Id<struct BlockTag, int32_t>;        // one block of the paged KV cache

// Token ids live in arrays that go to devices, so they stay plain.
using TokenId = int32_t;

// Half-open [begin, end).
struct Range {
  int64_t begin = 0;
  int64_t end = 0;

  constexpr int64_t size() const { return end - begin; }
  constexpr bool empty() const { return end <= begin; }
  constexpr bool contains(int64_t i) const { return begin <= i && i < end; }
  friend constexpr auto operator<=>(const Range&, const Range&) = default;
};

}  // namespace polyreme
