// How many blocks the cache has: what every rank can give, unless it is settled already.
#pragma once

#include <cstdint>
#include <vector>

#include "coordinator/engine/peers.h"
#include "parallel/base/status.h"

namespace polyreme::engine {

struct CacheSizeOptions {
  int32_t num_blocks = 0;      // by hand; 0: from the ranks' memory
  int32_t num_blocks_min = 1;  // fewer cannot serve one sequence
  int32_t num_blocks_max = 0;  // more are never needed
};

// peers: all of them loaded. A pool that a rank holds from an epoch before is kept: the others make
// theirs like it. FailedPrecondition: two ranks hold pools of different sizes. ResourceExhausted:
// the memory gives too few blocks; names the rank that limits.
absl::StatusOr<int32_t> ChooseNumBlocks(const std::vector<Peers::Peer>& peers,
                                        const CacheSizeOptions& options);

}  // namespace polyreme::engine
