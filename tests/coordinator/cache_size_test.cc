// How many blocks the cache has.
#include "coordinator/engine/cache_size.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace polyreme::engine {
namespace {

using ::testing::HasSubstr;

std::vector<Peers::Peer> TwoRanks() {
  std::vector<Peers::Peer> peers(2);
  peers[0].kv_bytes_per_block = peers[1].kv_bytes_per_block = 10;
  peers[0].kv_bytes_budget = 1000;
  peers[1].kv_bytes_budget = 500;
  peers[0].identity.rank = 0;
  peers[1].identity.rank = 1;
  return peers;
}

TEST(CacheSize, TheSmallestRankDecidesUpToWhatIsOfUse) {
  EXPECT_EQ(*ChooseNumBlocks(TwoRanks(), {.num_blocks_max = 1000}), 50);
  EXPECT_EQ(*ChooseNumBlocks(TwoRanks(), {.num_blocks_max = 20}), 20);
  EXPECT_EQ(*ChooseNumBlocks(TwoRanks(), {.num_blocks = 7, .num_blocks_max = 20}), 7);
  const absl::Status few =
      ChooseNumBlocks(TwoRanks(), {.num_blocks_min = 51, .num_blocks_max = 1000}).status();
  EXPECT_EQ(few.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(few), HasSubstr("limited by rank 1"));
}

TEST(CacheSize, APoolThatIsHeldDecidesAlone) {
  std::vector<Peers::Peer> peers = TwoRanks();
  peers[0].num_blocks_held = 64;
  EXPECT_EQ(*ChooseNumBlocks(peers, {.num_blocks_max = 1000}), 64);
  peers[1].num_blocks_held = 64;
  EXPECT_EQ(*ChooseNumBlocks(peers, {.num_blocks_max = 1000}), 64);
}

TEST(CacheSize, PoolsOfTwoSizesAreNamed) {
  std::vector<Peers::Peer> peers = TwoRanks();
  peers[0].num_blocks_held = 64;
  peers[1].num_blocks_held = 65;
  const absl::Status status = ChooseNumBlocks(peers, {.num_blocks_max = 1000}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), HasSubstr("rank 0 holds 64 cache blocks, and rank 1 holds 65"));
}

}  // namespace
}  // namespace polyreme::engine
