#include "coordinator/engine/cache_size.h"

#include <string>
#include <vector>

#include "parallel/plan/cache_blocks.h"

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
  std::vector<plan::CacheRoom> rooms;
  for (const Peers::Peer& peer : peers) {
    rooms.push_back({peer.kv_bytes_budget, peer.kv_bytes_per_block});
  }
  const auto [blocks, limited_by] = plan::BlocksThatFit(rooms, options.num_blocks_max);
  if (blocks < options.num_blocks_min) {
    std::string who = "nobody";
    if (limited_by >= 0) {
      const Peers::Peer& peer = peers[static_cast<size_t>(limited_by)];
      who = fmt::format("rank {} (host {}): {} bytes for the cache, {} bytes a block",
                        peer.identity.rank, peer.identity.host, peer.kv_bytes_budget,
                        peer.kv_bytes_per_block);
    }
    return ResourceExhausted(
        "the cache holds {} blocks, but one sequence of the full context needs {}; limited by {}. "
        "Give --kv-cache-memory-bytes "
        "or a smaller --max-model-len",
        blocks, options.num_blocks_min, who);
  }
  return static_cast<int32_t>(blocks);
}

}  // namespace polyreme::engine
