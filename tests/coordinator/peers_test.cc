// Who may take part: what the coordinator compares when a rank joins.
#include "coordinator/engine/peers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace polyreme::engine {
namespace {

using ::testing::HasSubstr;

PeerIdentity RankOn(int32_t rank, const std::string& device) {
  return {.rank = rank,
          .world_size = 3,
          .host = "a",
          .pid = 100 + rank,
          .build_id = "b",
          .settings = "s=1\n",
          .checkpoint = "c",
          .device = device};
}

TEST(Peers, TwoRanksOnOneDeviceAreNamed) {
  Peers peers(RankOn(0, ""));
  EXPECT_TRUE(peers.Join(RankOn(0, "a/0000:1b:00.0")).ok());
  EXPECT_TRUE(peers.Join(RankOn(1, "b/0000:1b:00.0")).ok());
  const absl::Status refused = peers.Join(RankOn(2, "a/0000:1b:00.0"));
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(refused), HasSubstr("rank 2 on host a (pid 102) computes on a/0000:1b:00.0"));
  EXPECT_THAT(Message(refused), HasSubstr("so does rank 0 (pid 100)"));
  EXPECT_THAT(Message(refused), HasSubstr("--allow-shared-gpu"));
  EXPECT_EQ(peers.failure(), refused);
}

TEST(Peers, OneDeviceMayBeSharedWhereThatIsAllowedOrNoneIsNamed) {
  Peers allowed(RankOn(0, ""), /*allow_shared_device=*/true);
  Peers unnamed(RankOn(0, ""));
  for (int32_t rank = 0; rank < 3; ++rank) {
    EXPECT_TRUE(allowed.Join(RankOn(rank, "a/0000:1b:00.0")).ok());
    EXPECT_TRUE(unnamed.Join(RankOn(rank, "")).ok());
  }
}

}  // namespace
}  // namespace polyreme::engine
