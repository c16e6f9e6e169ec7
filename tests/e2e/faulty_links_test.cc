// Ranks whose connections pass through a network that misbehaves: slow and torn links change no sum
// and no token; resets, black holes and half-open connections end in time and name the rank.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "parallel/base/clock.h"
#include "parallel/comm/tcp_socket.h"
#include "tests/e2e/fault_proxy.h"
#include "tests/parallel/ranks.h"
#include "tests/worker/checkpoint_builder.h"
#include "tests/worker/hand_scheduler.h"

namespace polyreme::e2e {
namespace {

using comm::ProcessGroup;
using ::testing::HasSubstr;

// A meeting at which each rank is told to reach the others through a proxy.
class MeetingBehindProxies final : public launch::Rendezvous {
 public:
  explicit MeetingBehindProxies(FaultProxy::Link link = {}) : link_(link) {}

  absl::Status Put(std::string_view key, std::string value) override {
    return meet_.Put(key, std::move(value));
  }
  absl::StatusOr<std::string> Wait(std::string_view key, absl::Time deadline) override {
    ASSIGN_OR_RETURN(std::string value, meet_.Wait(key, deadline));
    if (key.find("/address/") == std::string_view::npos) return value;
    ASSIGN_OR_RETURN(const comm::SocketAddress address, comm::ParseSocketAddress(value));
    const std::lock_guard lock(mutex_);
    std::unique_ptr<FaultProxy>& proxy = proxies_[value];
    if (proxy == nullptr) {
      proxy = std::make_unique<FaultProxy>(address.host, address.port);
      proxy->Set(link_);
    }
    return comm::ToString({"127.0.0.1", static_cast<uint16_t>(proxy->port())});
  }

  template <class Do>
  void ForEach(Do what) {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(proxies_.empty()) << "nothing passed through a proxy";
    for (const auto& [address, proxy] : proxies_) what(*proxy);
  }
  void Set(const FaultProxy::Link& link) {
    ForEach([&](FaultProxy& proxy) { proxy.Set(link); });
  }
  template <class Figure>
  int64_t Sum(Figure figure) {
    int64_t sum = 0;
    ForEach([&](const FaultProxy& proxy) { sum += (proxy.*figure)(); });
    return sum;
  }

 private:
  launch::InMemoryRendezvous meet_;
  std::mutex mutex_;
  FaultProxy::Link link_;
  std::map<std::string, std::unique_ptr<FaultProxy>> proxies_;  // guarded by mutex_; by address
};

const FaultProxy::Link kTorn{.segment_bytes = 1};
const FaultProxy::Link kSlow{.delay = absl::Milliseconds(3)};
const FaultProxy::Link kBlackHole{.passage = FaultProxy::Passage::kNone};
const FaultProxy::Link kOneWay{.passage = FaultProxy::Passage::kOneWay};

comm::RanksOptions Over(MeetingBehindProxies& meet, int32_t stages, int32_t shards) {
  comm::RanksOptions options;
  options.kind = ProcessGroup::Kind::kTcp;
  options.stages = stages;
  options.shards = shards;
  options.meet = &meet;
  return options;
}

absl::Span<std::byte> BytesOf(int32_t& value) {
  return {reinterpret_cast<std::byte*>(&value), sizeof(value)};
}

TEST(FaultyLinks, SlowAndTornLinksChangeNoSum) {
  for (const FaultProxy::Link& link : {kTorn, kSlow}) {
    MeetingBehindProxies meet(link);
    comm::ExpectAllWell(Over(meet, 2, 2), [&](ProcessGroup& group, Lane& lane) {
      std::vector<float> x(3001);
      const int32_t shard = group.place().shard;
      for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 7 + shard);
      group.tensor().AllReduceSum(lane, {x.data(), DType::kF32, Shape{std::ssize(x)}});
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_EQ(x[i], static_cast<float>(2 * (i % 7) + 1)) << i;
      }
    });
    EXPECT_GT(meet.Sum(&FaultProxy::bytes_passed), 3001 * 4);
    if (link.segment_bytes == 1) {
      EXPECT_EQ(meet.Sum(&FaultProxy::segments), meet.Sum(&FaultProxy::bytes_passed));
    }
  }
}

TEST(FaultyLinks, AResetIsKnownAtOnceOnBothSidesAndNamed) {
  MeetingBehindProxies meet;
  comm::ExpectAllWell(Over(meet, 2, 1), [&](ProcessGroup& group, Lane&) {
    int32_t token = 1;
    const int self = group.place().stage;
    const absl::Time deadline = MonotonicNow() + absl::Seconds(30);
    if (self == 0) {
      ASSERT_TRUE(group.feedback().Receive(1, BytesOf(token), deadline).ok());
      meet.ForEach([](FaultProxy& proxy) { proxy.Reset(); });
    } else {
      ASSERT_TRUE(group.feedback().Send(0, BytesOf(token), deadline).ok());
    }
    const absl::Status status = group.feedback().Receive(1 - self, BytesOf(token), deadline);
    EXPECT_TRUE(absl::IsUnavailable(status)) << status.ToString();
    EXPECT_THAT(Message(status), HasSubstr(fmt::format("rank {}", 1 - self)));
    EXPECT_LT(MonotonicNow(), deadline - absl::Seconds(15));
  });
  EXPECT_GT(meet.Sum(&FaultProxy::num_ended), 0);
}

// Rank 1 speaks first; then the links change, and each rank says something and waits for an answer.
// What came of the waits of rank 0 and rank 1.
std::pair<absl::Status, absl::Status> TalkAcross(MeetingBehindProxies& meet,
                                                 const std::function<void()>& change) {
  absl::Status waits[2];
  absl::Notification changed;
  comm::ExpectAllWell(Over(meet, 2, 1), [&](ProcessGroup& group, Lane&) {
    int32_t token = 1;
    const int self = group.place().stage;
    const absl::Time soon = MonotonicNow() + absl::Seconds(30);
    if (self == 1) {
      ASSERT_TRUE(group.feedback().Send(0, BytesOf(token), soon).ok());
      changed.WaitForNotification();
    } else {
      ASSERT_TRUE(group.feedback().Receive(1, BytesOf(token), soon).ok());
      change();
      changed.Notify();
    }
    int32_t heard = 0;
    const comm::Transport::Outgoing send{BytesOf(token), 1 - self};
    const comm::Transport::Incoming receive{BytesOf(heard), 1 - self};
    waits[self] = group.feedback().Exchange({&send, 1}, {&receive, 1},
                                            MonotonicNow() + absl::Seconds(1 + self));
  });
  return {waits[0], waits[1]};
}

TEST(FaultyLinks, ABlackHoleEndsAtTheDeadlineAndNamesTheRank) {
  MeetingBehindProxies meet;
  const auto [first, second] = TalkAcross(meet, [&] { meet.Set(kBlackHole); });
  EXPECT_TRUE(absl::IsDeadlineExceeded(first)) << first.ToString();
  EXPECT_THAT(Message(first), HasSubstr("rank 1"));
  EXPECT_TRUE(absl::IsDeadlineExceeded(second)) << second.ToString();
  EXPECT_THAT(Message(second), HasSubstr("rank 0"));
  EXPECT_GT(meet.Sum(&FaultProxy::bytes_swallowed), 0);
}

TEST(FaultyLinks, WhoHearsNothingOnAOneWayLinkNamesTheRank) {
  MeetingBehindProxies meet;
  // Rank 1 is the one that connects: what rank 0 answers is swallowed.
  const auto [first, second] = TalkAcross(meet, [&] { meet.Set(kOneWay); });
  EXPECT_TRUE(first.ok()) << first.ToString();
  EXPECT_FALSE(second.ok());
  EXPECT_THAT(Message(second), HasSubstr("rank 0"));
  EXPECT_GT(meet.Sum(&FaultProxy::bytes_swallowed), 0);
}

TEST(FaultyLinks, BothSidesOfAHalfOpenConnectionEnd) {
  MeetingBehindProxies meet;
  const auto [first, second] = TalkAcross(meet, [&] {
    meet.ForEach([](FaultProxy& proxy) { proxy.HalfOpen(); });
    meet.Set({});  // returns once that has been done
  });
  EXPECT_TRUE(absl::IsUnavailable(first)) << first.ToString();
  EXPECT_THAT(Message(first), HasSubstr("rank 1"));
  EXPECT_TRUE(absl::IsDeadlineExceeded(second)) << second.ToString();
  EXPECT_THAT(Message(second), HasSubstr("rank 0"));
  EXPECT_GT(meet.Sum(&FaultProxy::num_ended), 0);
}

TEST(FaultyLinks, AMeetingThroughABlackHoleEndsAtItsDeadlineAndNamesTheRank) {
  MeetingBehindProxies meet(kBlackHole);
  comm::RanksOptions options = Over(meet, 1, 2);
  options.patience = absl::Seconds(2);
  const std::vector<absl::Status> results =
      comm::RunRanks(options, [](ProcessGroup&, Lane&) { FAIL() << "met through a black hole"; });
  for (size_t rank = 0; rank < 2; ++rank) {
    EXPECT_TRUE(absl::IsDeadlineExceeded(results[rank])) << results[rank].ToString();
    EXPECT_THAT(Message(results[rank]), HasSubstr(fmt::format("rank {}", 1 - rank)));
  }
  EXPECT_GT(meet.Sum(&FaultProxy::bytes_swallowed), 0);
}

// Whole ranks with a model.
class FaultyLinksUnderAModel : public testing::Test {
 protected:
  void SetUp() override {
    const std::string config = weights::TinyConfig(plan::ModelSpec::Family::kLlama);
    const absl::StatusOr<plan::ModelSpec> spec = plan::ParseModelSpec(config);
    ASSERT_TRUE(spec.ok()) << spec.status();
    directory_ =
        weights::WriteCheckpoint("faulty_links", config, weights::RandomTensors(*spec, "BF16"));
  }

  bench::RankThreadsOptions options(launch::Rendezvous* meet) const {
    bench::RankThreadsOptions options;
    options.limits = {.num_slots = 8,
                      .num_blocks = 40,
                      .tokens_per_block = 8,
                      .max_step_tokens = 64,
                      .max_step_samples = 64,
                      .max_model_len = 64,
                      .vocabulary = 300,
                      .max_steps_in_flight = 3};
    options.meet = meet;
    if (meet == nullptr) return options;
    options.stages = 2;
    options.shards = 2;
    options.transport = ProcessGroup::Kind::kTcp;
    options.patience = absl::Seconds(60);
    return options;
  }

  static std::vector<run::HandRequest> Requests() {
    step::SamplingParams greedy;
    greedy.temperature = 0;
    step::SamplingParams drawn;
    drawn.temperature = 0.9f;
    drawn.seed = 7;
    return {{{3, 1, 4, 1, 5, 9, 2, 6}, 10, greedy, true, 1},
            {{2, 7, 1, 8, 2, 8}, 8, drawn, false, 2}};
  }

  std::string directory_;
};

TEST_F(FaultyLinksUnderAModel, SlowAndTornLinksChangeNoToken) {
  const run::HandPolicy policy{.chunk = 5, .depth = 3, .cohorts = 2};
  const auto alone = bench::RankThreads::Start(directory_, options(nullptr));
  ASSERT_TRUE(alone.ok()) << alone.status();
  const auto want = run::RunByHand(**alone, options(nullptr).limits, Requests(), {});
  ASSERT_TRUE(want.ok()) << want.status();
  for (const FaultProxy::Link& link : {kTorn, kSlow}) {
    MeetingBehindProxies meet(link);
    const auto ranks = bench::RankThreads::Start(directory_, options(&meet));
    ASSERT_TRUE(ranks.ok()) << ranks.status();
    const auto got = run::RunByHand(**ranks, options(&meet).limits, Requests(), policy);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_TRUE(*got == *want);
    EXPECT_GT(meet.Sum(&FaultProxy::bytes_passed), 0);
  }
}

TEST_F(FaultyLinksUnderAModel, AResetInTheMiddleGivesNoTokenAndNamesTheRank) {
  MeetingBehindProxies meet;
  const auto ranks = bench::RankThreads::Start(directory_, options(&meet));
  ASSERT_TRUE(ranks.ok()) << ranks.status();
  ASSERT_TRUE(run::RunByHand(**ranks, options(&meet).limits, Requests(), {}).ok());
  meet.ForEach([](FaultProxy& proxy) { proxy.Reset(); });
  meet.Set({});
  run::HandPolicy policy;
  const auto got = run::RunByHand(**ranks, options(&meet).limits, Requests(), policy);
  ASSERT_FALSE(got.ok());
  EXPECT_TRUE(absl::IsUnavailable(got.status())) << got.status();
  EXPECT_THAT(Message(got.status()), HasSubstr("rank "));
  EXPECT_GT(meet.Sum(&FaultProxy::num_ended), 0);
}

}  // namespace
}  // namespace polyreme::e2e
