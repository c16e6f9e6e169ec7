// How many blocks a cluster's cache has: as many as the rank with the least room holds, for a block
// is the same one on every rank.
#pragma once

#include <cstdint>

#include "absl/types/span.h"

namespace polyreme::plan {

// Of one rank. bytes_per_block 0: it holds none of the cache.
struct CacheRoom {
  int64_t bytes = 0;
  int64_t bytes_per_block = 0;
};

struct CacheBlocks {
  int64_t num_blocks = 0;
  int32_t limited_by = -1;  // index of the rank with the least room; -1: none limits
};
// most: more are never needed.
inline CacheBlocks BlocksThatFit(absl::Span<const CacheRoom> ranks, int64_t most) {
  CacheBlocks result{.num_blocks = most};
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (ranks[i].bytes_per_block == 0) continue;
    const int64_t here = ranks[i].bytes / ranks[i].bytes_per_block;
    if (here < result.num_blocks) result = {here, static_cast<int32_t>(i)};
  }
  return result;
}

// Of one sequence.
inline int64_t BlocksOf(int64_t tokens, int64_t tokens_per_block) {
  return (tokens + tokens_per_block - 1) / tokens_per_block;
}

}  // namespace polyreme::plan
