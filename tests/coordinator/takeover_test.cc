// A coordinator that takes the place of a lost one, with ranks that only talk: what keeps the two
// incarnations apart, over the real wire.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <string>
#include <thread>
#include <vector>

#include "tests/coordinator/talking_rank.h"

namespace polyreme::engine {
namespace {

using run::CoordinatorLink;
using run::StartOrder;
using ::testing::HasSubstr;

TEST(Takeover, ItsFirstEpochIsAboveWhatAnyRankAndTheNoteHaveKnown) {
  std::vector<int64_t> announced;
  ClusterOptions options = TwoShards(2, 5);
  options.on_epoch = [&](Epoch epoch, const std::vector<absl::Time>& losses) {
    announced.push_back(epoch.value);
    EXPECT_EQ(losses.size(), 1u) << "the lost coordinator counts";
  };
  const auto cluster = *Cluster::Listen(options);
  TalkingRank a(*cluster, Identity(0, 3, 1), 0);
  TalkingRank b(*cluster, Identity(1, 7, 1), 0);
  for (const StartOrder& start : Serve(*cluster, {&a, &b})) EXPECT_EQ(start.epoch, Epoch{8});
  EXPECT_EQ(announced, std::vector<int64_t>{8});
  EXPECT_EQ(cluster->epoch(), Epoch{8});
  EXPECT_EQ(a.link().incarnation(), 2);

  const auto by_note = *Cluster::Listen(TwoShards(2, 12));
  TalkingRank c(*by_note, Identity(0, 3, 1), 0);
  TalkingRank d(*by_note, Identity(1, 0, 0), 0);
  for (const StartOrder& start : Serve(*by_note, {&c, &d})) EXPECT_EQ(start.epoch, Epoch{12});
}

TEST(Takeover, APoolThatARankHoldsSettlesTheNumberOfBlocks) {
  const auto cluster = *Cluster::Listen(TwoShards(2, 2));
  TalkingRank a(*cluster, Identity(0, 1, 1), 37);
  TalkingRank b(*cluster, Identity(1, 0, 0), 0);
  for (const StartOrder& start : Serve(*cluster, {&a, &b})) EXPECT_EQ(start.num_blocks, 37);
  EXPECT_EQ(cluster->num_blocks(), 37);
}

// Both ends of a link tell of its loss, at about the same time, and again for each plan on its way.
TEST(Takeover, ALossThatBothSidesTellOfCostsOneEpoch) {
  ClusterOptions options = TwoShards(2, 2);
  options.max_restarts = 2000;
  const auto cluster = *Cluster::Listen(options);
  TalkingRank a(*cluster, Identity(0, 1, 1), 8);
  TalkingRank b(*cluster, Identity(1, 1, 1), 8);
  Serve(*cluster, {&a, &b});
  for (int i = 0; i < 1000; ++i) {
    const Epoch lost = cluster->epoch();
    std::vector<std::future<void>> lives;
    for (TalkingRank* rank : {&a, &b}) {
      lives.push_back(std::async(std::launch::async, [rank, lost] {
        for (int plan = 0; plan < 20; ++plan) {
          EXPECT_TRUE(rank->link().client()->SendFailed(lost, Unavailable("reset by peer")).ok());
        }
        rank->ServeAsTold();
      }));
    }
    while (cluster->link().failure().ok()) std::this_thread::yield();
    const absl::StatusOr<Epoch> next = cluster->link().Recover(cluster->link().failure());
    ASSERT_TRUE(next.ok()) << next.status();
    for (std::future<void>& life : lives) life.get();
    ASSERT_EQ(next->value, lost.value + 1) << "in round " << i;
  }
}

TEST(Takeover, ACoordinatorThatWasReplacedGivesUpAtTheFirstRankThatKnowsIt) {
  const auto old = *Cluster::Listen(TwoShards(1, 1));
  CoordinatorLink link(old->address(), kToken, Identity(0, 4, 2));
  const absl::Status refused =
      link.DialIn(MonotonicNow() + kPatience, CoordinatorLink::Effort::kPersistently);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  EXPECT_THAT(Message(old->failure()), HasSubstr("its time is over"));
  EXPECT_FALSE(old->WaitUntilReady().ok());
}

TEST(Takeover, OnlyTheEpochThatRunsMeets) {
  const auto cluster = *Cluster::Listen(TwoShards(2, 6));
  TalkingRank a(*cluster, Identity(0, 5, 1), 0);
  TalkingRank b(*cluster, Identity(1, 5, 1), 0);
  Serve(*cluster, {&a, &b});
  EXPECT_TRUE(a.link().client()->Put("epoch/6/x", "v").ok());
  for (const char* key : {"epoch/5/x", "epoch/60/x", "x"}) {
    EXPECT_EQ(a.link().client()->Put(key, "v").code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(a.link().client()->Wait(key, MonotonicNow() + kPatience).status().code(),
              absl::StatusCode::kFailedPrecondition);
  }
}

TEST(Takeover, ALossBeforeItServesIsOneMoreRecovery) {
  const auto cluster = *Cluster::Listen(TwoShards(2, 2));
  TalkingRank a(*cluster, Identity(0, 1, 1), 37);
  auto b = std::make_unique<TalkingRank>(*cluster, Identity(1, 1, 1), 37);
  b->Leave();
  b.reset();
  // As the agent would start it; it may come before the loss of the one before it is noticed.
  TalkingRank successor(*cluster, Identity(1, 0, 0), 0);
  const std::vector<StartOrder> starts = Serve(*cluster, {&a, &successor});
  for (const StartOrder& start : starts) {
    EXPECT_EQ(start.epoch, cluster->epoch());
    EXPECT_EQ(start.num_blocks, 37);
  }
}

TEST(Takeover, AStreamThatComesAfterItsProcessWasReplacedIsRefused) {
  const auto cluster = *Cluster::Listen(TwoShards(2, 2));
  TalkingRank a(*cluster, Identity(0, 1, 1), 37);
  run::ClusterClient dead(cluster->address(), kToken);
  const auto joined = dead.Join(Identity(1, 1, 1), MonotonicNow() + kPatience);
  ASSERT_TRUE(joined.ok()) << joined.status();
  run::ClusterClient successor(cluster->address(), kToken);
  const auto joined_again = successor.Join(Identity(1, 0, 0), MonotonicNow() + kPatience);
  ASSERT_TRUE(joined_again.ok()) << joined_again.status();
  EXPECT_TRUE(dead.Attach(Rank{1}, joined->ticket).ok());
  std::future<absl::Status> end =
      std::async(std::launch::async, [&] { return dead.Read().status(); });
  EXPECT_EQ(end.wait_for(absl::ToChronoSeconds(kPatience)), std::future_status::ready);
  dead.Finish();
  EXPECT_EQ(end.get().code(), absl::StatusCode::kUnavailable);
  // The place is still free, and only for the one that joined last.
  EXPECT_TRUE(successor.Attach(Rank{1}, joined_again->ticket).ok());
  EXPECT_TRUE(successor.SendLoaded({1, 10, 500, 0}).ok());
  std::future<absl::Status> ready = std::async(std::launch::async, [&] {
    const absl::Status status = cluster->WaitUntilReady();
    if (!status.ok()) cluster->Stop(status, MonotonicNow());
    return status;
  });
  const absl::StatusOr<run::Order> order = successor.Read();
  ASSERT_TRUE(order.ok()) << order.status();
  const auto* start = std::get_if<StartOrder>(&*order);
  ASSERT_NE(start, nullptr);
  EXPECT_TRUE(successor.SendReady(start->epoch, {}).ok());
  EXPECT_EQ(a.ServeAsTold().epoch, start->epoch);
  EXPECT_TRUE(ready.get().ok());
}

TEST(Takeover, LossesBeforeItCountToo) {
  ClusterOptions options = TwoShards(3, 2);
  options.max_restarts = 2;
  options.losses = {MonotonicNow() - absl::Hours(1), MonotonicNow(), MonotonicNow()};
  const absl::Status ended = (*Cluster::Listen(options))->WaitUntilReady();
  EXPECT_THAT(Message(ended), HasSubstr("incarnation 2 of the coordinator is gone"));
  EXPECT_THAT(Message(ended), HasSubstr("2 losses within 10m before it"));
}

TEST(CoordinatorLink, AnEpochThatWasHeardOfNeverStartsAgain) {
  CoordinatorLink link("127.0.0.1:1", kToken, Identity(0, 0, 0));
  EXPECT_TRUE(link.Admit(Epoch{1}).ok());
  EXPECT_EQ(link.Admit(Epoch{1}).code(), absl::StatusCode::kFailedPrecondition);
  link.NoteEpoch(Epoch{4});
  EXPECT_FALSE(link.Admit(Epoch{4}).ok());
  EXPECT_TRUE(link.Admit(Epoch{5}).ok());
}

TEST(CoordinatorLink, AClosedClientMeetsNobodyAtTheAddressItHad) {
  const auto cluster = *Cluster::Listen(TwoShards(2, 2));
  TalkingRank a(*cluster, Identity(0, 1, 1), 0);
  TalkingRank b(*cluster, Identity(1, 1, 1), 0);
  Serve(*cluster, {&a, &b});
  const std::shared_ptr<run::ClusterClient> client = a.link().client();
  std::future<absl::Status> waiting = std::async(std::launch::async, [&] {
    return client->Wait("epoch/2/never", MonotonicNow() + kPatience).status();
  });
  client->Close();
  EXPECT_EQ(waiting.get().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(client->Put("epoch/2/x", "v").code(), absl::StatusCode::kCancelled);
}

TEST(CoordinatorLink, WaitsForACoordinatorThatComesLater) {
  // A port that was somebody's a moment ago.
  std::string address;
  {
    const auto cluster = *Cluster::Listen(TwoShards(1, 1));
    address = cluster->address();
  }
  CoordinatorLink link(address, kToken, Identity(0, 1, 1));
  std::future<absl::Status> dialled = std::async(std::launch::async, [&] {
    return link.DialIn(MonotonicNow() + kPatience, CoordinatorLink::Effort::kPersistently);
  });
  ClusterOptions options = TwoShards(2, 2);
  options.port = std::stoi(address.substr(address.rfind(':') + 1));
  const absl::StatusOr<std::unique_ptr<Cluster>> cluster = Cluster::Listen(options);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  EXPECT_TRUE(dialled.get().ok());
  EXPECT_EQ(link.incarnation(), 2);
}

}  // namespace
}  // namespace polyreme::engine
