#include "coordinator/engine/cache_size.h"

#include <string>

namespace polyreme::engine {
namespace {

absl::StatusOr<int32_t> NumBlocksHeld(const std::vector<Peers::Peer>& peers) {
  const Peers::Peer* holder = nullptr;
  for (const Peers::Peer& peer : peers) {
    if (peer.num_blocks_held == 0) continue;
    if (holder != nullptr && holder->num_blocks_held != peer.num_blocks_held) {
      return FailedPrecondition("rank {} holds {} cache blocks, and rank {} holds {}",
                                holder->identity.rank, holder->num_blocks_held, peer.identity.rank,
                                peer.num_blocks_held);
    }
    holder = &peer;
  }
  return holder == nullptr ? 0 : holder->num_blocks_held;
}

}  // namespace

absl::StatusOr<int32_t> ChooseNumBlocks(const std::vector<Peers::Peer>& peers,
                                        const CacheSizeOptions& options) {
  ASSIGN_OR_RETURN(const int32_t held, NumBlocksHeld(peers));
  if (held > 0) return held;
  if (options.num_blocks > 0) return options.num_blocks;
  int64_t blocks = options.num_blocks_max;
  std::string who = "nobody";
  for (const Peers::Peer& peer : peers) {
    if (peer.kv_bytes_per_block == 0) continue;
    const int64_t here = peer.kv_bytes_budget / peer.kv_bytes_per_block;
    if (here < blocks) {
      blocks = here;
      who = fmt::format("rank {} (host {}): {} bytes for the cache, {} bytes a block",
                        peer.identity.rank, peer.identity.host, peer.kv_bytes_budget,
                        peer.kv_bytes_per_block);
    }
  }
  if (blocks < options.num_blocks_min) {
    return ResourceExhausted(
        "the cache holds {} blocks, but one sequence of the full context needs {}; limited by {}. "
        "Give --kv-cache-memory-bytes "
        "or a smaller --max-model-len",
        blocks, options.num_blocks_min, who);
  }
  return static_cast<int32_t>(blocks);
}

}  // namespace polyreme::engine
