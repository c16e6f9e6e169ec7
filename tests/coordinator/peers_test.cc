// Who may take part: what the coordinator compares when a rank joins.
#include "coordinator/engine/peers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/engine/result_merger.h"
#include "parallel/base/clock.h"

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

void Enter(Peers& peers, const PeerIdentity& identity) {
  const absl::StatusOr<int64_t> ticket = peers.Join(identity);
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  const absl::Status attached = peers.Attach(identity.rank, *ticket);
  ASSERT_TRUE(attached.ok()) << attached;
}

TEST(Peers, TwoRanksOnOneDeviceAreNamed) {
  Peers peers(RankOn(0, ""));
  EXPECT_TRUE(peers.Join(RankOn(0, "a/0000:1b:00.0")).ok());
  EXPECT_TRUE(peers.Join(RankOn(1, "b/0000:1b:00.0")).ok());
  const absl::Status refused = peers.Join(RankOn(2, "a/0000:1b:00.0")).status();
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

TEST(Peers, ALossIsOfTheEpochOnceAllHaveServedAndTheRankMayComeAgain) {
  Peers peers(RankOn(0, ""));
  for (int32_t rank = 0; rank < 3; ++rank) {
    Enter(peers, RankOn(rank, ""));
    peers.SetLoaded(rank, 1, 1, 1);
    peers.SetReady(rank, {});
  }
  EXPECT_FALSE(peers.Lose(Unavailable("rank 1 was lost"))) << "nobody has served yet";
  peers.SetServed();
  EXPECT_TRUE(peers.Lose(Unavailable("rank 1 was lost")));
  EXPECT_EQ(Message(peers.WaitFor(Peers::Phase::kReady, absl::InfinitePast())), "rank 1 was lost");
  EXPECT_TRUE(peers.failure().ok());
  EXPECT_EQ(peers.Join(RankOn(1, "")).status().code(), absl::StatusCode::kAlreadyExists);
  peers.SetAbsent(1);
  peers.NextEpoch();
  EXPECT_TRUE(peers.loss().ok());
  peers.SetEpochEnded(1);  // of the process that is gone
  Enter(peers, RankOn(1, ""));
  peers.SetEpochEnded(0);
  peers.SetEpochEnded(2);
  EXPECT_FALSE(peers.WaitFor(Peers::Phase::kLoaded, absl::InfinitePast()).ok());
  peers.SetLoaded(1, 1, 1, 1);
  EXPECT_TRUE(peers.WaitFor(Peers::Phase::kLoaded, MonotonicNow() + absl::Seconds(10)).ok());
}

TEST(Peers, ARankThatDiedBetweenJoiningAndItsStreamMayComeAgainOnceAllHaveServed) {
  Peers first(RankOn(0, ""));
  EXPECT_TRUE(first.Join(RankOn(1, "")).ok());
  EXPECT_EQ(first.Join(RankOn(1, "")).status().code(), absl::StatusCode::kAlreadyExists);

  Peers peers(RankOn(0, ""));
  peers.SetServed();
  EXPECT_TRUE(peers.Join(RankOn(1, "")).ok());
  Enter(peers, RankOn(1, ""));
  EXPECT_EQ(peers.Join(RankOn(1, "")).status().code(), absl::StatusCode::kAlreadyExists);
}

TEST(Peers, TheStreamOfAProcessThatGaveWayTakesNobodysPlace) {
  Peers peers(RankOn(0, ""), /*allow_shared_device=*/false, /*incarnation=*/2);
  peers.SetServed();
  const int64_t before = *peers.Join(RankOn(1, ""));
  const int64_t now = *peers.Join(RankOn(1, ""));
  const absl::Status late = peers.Attach(1, before);
  EXPECT_EQ(late.code(), absl::StatusCode::kFailedPrecondition) << late;
  EXPECT_THAT(Message(late), HasSubstr("attaches with ticket 0x200000001"));
  EXPECT_THAT(Message(late), HasSubstr("joined last with 0x200000002"));
  EXPECT_TRUE(peers.Attach(1, now).ok());

  Peers next(RankOn(0, ""), /*allow_shared_device=*/false, /*incarnation=*/3);
  next.SetServed();
  ASSERT_TRUE(next.Join(RankOn(1, "")).ok());
  ASSERT_TRUE(next.Join(RankOn(1, "")).ok());
  EXPECT_FALSE(next.Attach(1, now).ok()) << "of another incarnation";
}

TEST(Peers, TheNextOfSuchARankMayComputeOnTheSameDevice) {
  Peers peers(RankOn(0, ""));
  for (int32_t rank = 0; rank < 3; ++rank) {
    Enter(peers, RankOn(rank, fmt::format("a/{}", rank)));
  }
  peers.SetServed();
  peers.SetAbsent(1);
  PeerIdentity next = RankOn(1, "a/1");
  next.pid = 201;
  EXPECT_TRUE(peers.Join(next).ok());
  next.pid = 202;  // the one before never attached
  Enter(peers, next);
  next.pid = 203;
  EXPECT_EQ(peers.Join(next).status().code(), absl::StatusCode::kAlreadyExists);
}

step::StepResult ResultOf(StepId id, Epoch epoch) {
  step::StepResult result;
  result.id = id;
  result.epoch = epoch;
  return result;
}

TEST(Peers, AnEpochCountsOnARankOnlyOnceItHasComeToThatEpoch) {
  Peers peers(RankOn(0, ""));
  Enter(peers, RankOn(1, ""));
  EXPECT_FALSE(peers.HasLoaded(1));
  peers.SetLoaded(1, 1, 1, 1);
  EXPECT_TRUE(peers.HasLoaded(1));
  peers.SetServed();
  ASSERT_TRUE(peers.Lose(Unavailable("rank 1 was lost")));
  peers.NextEpoch();
  EXPECT_FALSE(peers.HasLoaded(1)) << "its death would cost the epoch that begins, too";
  peers.SetEpochEnded(1);
  EXPECT_TRUE(peers.HasLoaded(1));
}

TEST(ResultMerger, WhatComesFromAnOldEpochIsIgnored) {
  ResultMerger results(2, Epoch{1});
  ASSERT_TRUE(results.Expect(StepId{0}).ok());
  EXPECT_TRUE(results.Add(Rank{0}, ResultOf(StepId{0}, Epoch{1})).ok());
  results.Fail(Unavailable("rank 1 was lost"));
  EXPECT_FALSE(results.Await(StepId{0}, absl::InfinitePast()).ok());
  EXPECT_TRUE(results.Add(Rank{1}, ResultOf(StepId{0}, Epoch{1})).ok())
      << "the loss before would count against the epoch that begins, too";
  results.Restart(Epoch{2});
  ASSERT_TRUE(results.Expect(StepId{0}).ok());
  EXPECT_TRUE(results.Add(Rank{0}, ResultOf(StepId{0}, Epoch{1})).ok());
  EXPECT_TRUE(results.Add(Rank{1}, ResultOf(StepId{7}, Epoch{1})).ok());
  EXPECT_EQ(results.Await(StepId{0}, absl::InfinitePast()).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(results.Add(Rank{0}, ResultOf(StepId{0}, Epoch{2})).ok());
  EXPECT_TRUE(results.Add(Rank{1}, ResultOf(StepId{0}, Epoch{2})).ok());
  const auto merged = results.Await(StepId{0}, MonotonicNow() + absl::Seconds(10));
  ASSERT_TRUE(merged.ok());
  EXPECT_EQ(merged->epoch, Epoch{2});
  EXPECT_EQ(results.Add(Rank{0}, ResultOf(StepId{1}, Epoch{3})).code(), absl::StatusCode::kInternal)
      << "of an epoch to come";
  EXPECT_EQ(results.failure().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace polyreme::engine
