// How ranks meet, and how they part: missing ranks, strangers, old epochs, other hosts, aborts and
// deaths.

#include "parallel/comm/process_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "parallel/base/clock.h"
#include "tests/parallel/ranks.h"

namespace polyreme::comm {
namespace {

using Kind = ProcessGroup::Kind;
using testing::AllOf;
using testing::HasSubstr;

TensorView View(std::vector<float>& values) {
  return {values.data(), DType::kF32, Shape{std::ssize(values)}};
}
absl::Span<std::byte> BytesOf(int32_t& value) {
  return {reinterpret_cast<std::byte*>(&value), sizeof(value)};
}

class AnyKind : public testing::TestWithParam<Kind> {
 protected:
  RanksOptions options(int32_t stages, int32_t shards) const {
    RanksOptions options;
    options.kind = GetParam();
    options.stages = stages;
    options.shards = shards;
    return options;
  }
};
std::string NameOfInstance(const testing::TestParamInfo<Kind>& instance) {
  return NameOf(instance.param);
}
INSTANTIATE_TEST_SUITE_P(All, AnyKind,
                         testing::Values(Kind::kThreads, Kind::kSharedMemory, Kind::kTcp,
                                         Kind::kAuto),
                         NameOfInstance);

TEST_P(AnyKind, EachRankStandsInItsTensorGroupAndItsPipelineColumn) {
  for (const auto& layout : {std::pair{1, 1}, {2, 2}, {3, 2}, {4, 1}, {1, 4}}) {
    const int stages = layout.first;
    const int shards = layout.second;
    ExpectAllWell(options(stages, shards), [&](ProcessGroup& group, Lane& lane) {
      EXPECT_EQ(group.tensor().size(), shards);
      EXPECT_EQ(group.tensor().rank(), group.place().shard);
      EXPECT_EQ(group.pipeline().size(), stages);
      EXPECT_EQ(group.pipeline().rank(), group.place().stage);
      std::vector<float> x = {static_cast<float>(1 + group.place().stage * 10)};
      group.tensor().AllReduceSum(lane, View(x));
      EXPECT_EQ(x[0], static_cast<float>(shards * (1 + group.place().stage * 10)));
      std::vector<float> y = {static_cast<float>(group.place().shard)};
      group.pipeline().AllReduceSum(lane, View(y));
      EXPECT_EQ(y[0], static_cast<float>(stages * group.place().shard));
    });
  }
}

TEST_P(AnyKind, HiddenStatesGoDownThePipelineAndTokensComeBack) {
  const int32_t stages = 3;
  ExpectAllWell(options(stages, 2), [&](ProcessGroup& group, Lane& lane) {
    const plan::Place place = group.place();
    EXPECT_EQ(group.has_feedback(), place.stage != 1);
    for (int32_t step = 0; step < 20; ++step) {
      std::vector<float> hidden(5000, static_cast<float>(step + place.shard));
      if (place.stage > 0) {
        const Communicator::Incoming receive{View(hidden), place.stage - 1};
        group.pipeline().Exchange(lane, {}, {&receive, 1});
      }
      for (float& x : hidden) x += 1.0f;
      int32_t token = static_cast<int32_t>(hidden[4999]);
      const absl::Time deadline = MonotonicNow() + absl::Seconds(20);
      if (place.stage < stages - 1) {
        const Communicator::Outgoing send{View(hidden), place.stage + 1};
        group.pipeline().Exchange(lane, {&send, 1}, {});
      } else {
        EXPECT_TRUE(group.feedback().Send(0, BytesOf(token), deadline).ok());
      }
      if (place.stage == 0) {
        EXPECT_TRUE(group.feedback().Receive(1, BytesOf(token), deadline).ok());
        EXPECT_EQ(token, step + place.shard + stages);
      }
    }
  });
}

TEST_P(AnyKind, ARankThatDoesNotComeIsNamed) {
  RanksOptions late = options(1, 3);
  late.patience = absl::Milliseconds(300);
  late.adjust = [](Rank self, ProcessGroup::Options& join) {
    // Rank 1 goes to a meeting of its own.
    if (self.value == 1) join.epoch = Epoch{77};
  };
  const std::vector<absl::Status> results =
      RunRanks(late, [](ProcessGroup&, Lane&) { FAIL() << "nobody can have joined"; });
  for (const size_t r : {size_t{0}, size_t{2}}) {
    EXPECT_TRUE(absl::IsDeadlineExceeded(results[r])) << results[r].ToString();
    EXPECT_THAT(
        Message(results[r]),
        AllOf(HasSubstr("rank 1 did not join tensor group 0 of epoch 1"), HasSubstr("within")));
  }
  EXPECT_FALSE(results[1].ok());
}

TEST_P(AnyKind, OneRanksAbortWakesAllThatWait) {
  ExpectAllWell(options(1, 4), [&](ProcessGroup& group, Lane&) {
    TestLane lane;
    lane.SetFailureHook([&](const absl::Status& why) { group.Abort(why); });
    const absl::Time start = MonotonicNow();
    if (group.place().shard == 2) {
      lane.Fail(Internal("the ice is thin"));
    } else {
      std::vector<float> x(100000, 1.0f);
      group.tensor().AllReduceSum(lane, View(x));
      EXPECT_TRUE(absl::IsUnavailable(lane.status())) << lane.status().ToString();
    }
    EXPECT_FALSE(lane.ok());
    EXPECT_LT(MonotonicNow() - start, absl::Seconds(30));
    // And the group stays over.
    TestLane next;
    std::vector<float> x(10, 1.0f);
    group.tensor().AllReduceSum(next, View(x));
    EXPECT_FALSE(next.ok());
  });
}

TEST_P(AnyKind, AbortFromAnotherThreadEndsAWait) {
  ExpectAllWell(options(2, 1), [&](ProcessGroup& group, Lane&) {
    int32_t token = 0;
    if (group.place().stage == 1) {
      // Stays until the other side has ended both of its groups.
      TestLane lane;
      float x = 0;
      const Communicator::Incoming receive{{&x, DType::kF32, Shape{1}}, 0};
      group.pipeline().Exchange(lane, {}, {&receive, 1});
      EXPECT_FALSE(lane.ok());
      EXPECT_FALSE(
          group.feedback().Receive(0, BytesOf(token), MonotonicNow() + absl::Seconds(20)).ok());
      return;
    }
    const std::jthread other([&] { group.Abort(Cancelled("enough")); });
    const absl::Status status =
        group.feedback().Receive(1, BytesOf(token), MonotonicNow() + absl::Seconds(20));
    EXPECT_TRUE(absl::IsCancelled(status)) << status.ToString();
  });
}

TEST_P(AnyKind, AWaitEndsAtItsDeadlineAndNamesThePeer) {
  ExpectAllWell(options(2, 1), [&](ProcessGroup& group, Lane&) {
    int32_t token = 0;
    if (group.place().stage == 0) {
      const absl::Status status =
          group.feedback().Receive(1, BytesOf(token), MonotonicNow() + absl::Milliseconds(50));
      EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status.ToString();
      EXPECT_THAT(Message(status), HasSubstr("rank 1"));
      // What was half received cannot be taken up again.
      EXPECT_FALSE(group.feedback().Receive(1, BytesOf(token), MonotonicNow()).ok());
    } else {
      EXPECT_FALSE(
          group.feedback().Receive(0, BytesOf(token), MonotonicNow() + absl::Seconds(20)).ok());
    }
  });
}

TEST_P(AnyKind, APeerThatLeavesIsNamedAndWhatItSentStillArrives) {
  ExpectAllWell(options(2, 1), [&](ProcessGroup& group, Lane&) {
    int32_t token = 42;
    const absl::Time deadline = MonotonicNow() + absl::Seconds(20);
    if (group.place().stage == 1) {
      EXPECT_TRUE(group.feedback().Send(0, BytesOf(token), deadline).ok());
      return;  // and leaves
    }
    token = 0;
    EXPECT_TRUE(group.feedback().Receive(1, BytesOf(token), deadline).ok());
    EXPECT_EQ(token, 42);
    const absl::Status status = group.feedback().Receive(1, BytesOf(token), deadline);
    EXPECT_TRUE(absl::IsUnavailable(status)) << status.ToString();
    EXPECT_THAT(Message(status), HasSubstr("rank 1"));
  });
}

TEST_P(AnyKind, MessagesOfAnotherSizeAreRefused) {
  ExpectAllWell(options(2, 1), [&](ProcessGroup& group, Lane&) {
    int32_t token = 1;
    const absl::Time deadline = MonotonicNow() + absl::Seconds(20);
    if (group.place().stage == 1) {
      EXPECT_TRUE(group.feedback().Send(0, BytesOf(token).first(2), deadline).ok());
      EXPECT_FALSE(group.feedback().Receive(0, BytesOf(token), deadline).ok());
      return;
    }
    const absl::Status status = group.feedback().Receive(1, BytesOf(token), deadline);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status.ToString();
    EXPECT_THAT(Message(status), AllOf(HasSubstr("4 bytes"), HasSubstr("rank 1"), HasSubstr("2")));
  });
}

TEST_P(AnyKind, ANewEpochMeetsAtTheSamePlace) {
  launch::InMemoryRendezvous meet;
  ThreadHub hub;
  const plan::Topology topology = *plan::Topology::Make(1, 2);
  for (const int64_t epoch : {1, 2, 3}) {
    const auto run = [&](int32_t rank) {
      ProcessGroup::Options join;
      join.kind = GetParam();
      join.self = Rank{rank};
      join.epoch = Epoch{epoch};
      join.deadline = MonotonicNow() + absl::Seconds(20);
      join.job_token = "token";
      join.hub = &hub;
      const auto group = ProcessGroup::Join(topology, meet, join);
      ASSERT_TRUE(group.ok()) << group.status().ToString();
      TestLane lane;
      std::vector<float> x = {static_cast<float>(epoch)};
      (*group)->tensor().AllReduceSum(lane, View(x));
      EXPECT_TRUE(lane.ok()) << lane.status().ToString();
      EXPECT_EQ(x[0], static_cast<float>(2 * epoch));
    };
    const std::jthread other([&] { run(1); });
    run(0);
  }
}

TEST(ProcessGroup, RefusesSharedMemoryAcrossHostsAndNamesBoth) {
  RanksOptions options;
  options.kind = Kind::kSharedMemory;
  options.shards = 2;
  options.adjust = [](Rank self, ProcessGroup::Options& join) {
    join.host_identity = self.value == 0 ? "elk" : "moose";
  };
  for (const absl::Status& status :
       RunRanks(options, [](ProcessGroup&, Lane&) { FAIL() << "joined across hosts"; })) {
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status.ToString();
    EXPECT_THAT(Message(status), AllOf(HasSubstr("elk"), HasSubstr("moose")));
  }
}

TEST(ProcessGroup, ChoosesMemoryWithinAHostAndTcpBetweenHosts) {
  // Stage 0 on one host, stage 1 on another, each with an address of its own; the groups of both
  // kinds work together.
  RanksOptions options;
  options.kind = Kind::kAuto;
  options.stages = 2;
  options.shards = 2;
  options.adjust = [](Rank self, ProcessGroup::Options& join) {
    join.host_identity = self.value < 2 ? "elk" : "moose";
    join.listen_address = self.value < 2 ? "127.0.0.2" : "127.0.0.3";
  };
  ExpectAllWell(options, [](ProcessGroup& group, Lane& lane) {
    std::vector<float> x(3000, 1.0f), y(3000, 1.0f);
    group.tensor().AllReduceSum(lane, View(x));
    group.pipeline().AllReduceSum(lane, View(y));
    EXPECT_EQ(x[2999], 2.0f);
    EXPECT_EQ(y[2999], 2.0f);
  });
}

class TokenKind : public testing::TestWithParam<Kind> {};
INSTANTIATE_TEST_SUITE_P(All, TokenKind, testing::Values(Kind::kSharedMemory, Kind::kTcp),
                         NameOfInstance);

TEST_P(TokenKind, AnotherJobTokenIsRefused) {
  RanksOptions options;
  options.kind = GetParam();
  options.shards = 2;
  options.patience = absl::Milliseconds(500);
  options.adjust = [](Rank self, ProcessGroup::Options& join) {
    if (self.value == 1) join.job_token = "guessed";
  };
  const std::vector<absl::Status> results =
      RunRanks(options, [](ProcessGroup&, Lane&) { FAIL() << "joined with a guessed token"; });
  EXPECT_EQ(results[1].code(), absl::StatusCode::kUnauthenticated) << results[1].ToString();
  EXPECT_THAT(Message(results[1]), AllOf(HasSubstr("rank 0"), HasSubstr("another job token")));
  EXPECT_FALSE(results[0].ok());
}

TEST_P(TokenKind, NoTokenIsRefused) {
  RanksOptions options;
  options.kind = GetParam();
  options.shards = 2;
  options.adjust = [](Rank, ProcessGroup::Options& join) { join.job_token = ""; };
  for (const absl::Status& status :
       RunRanks(options, [](ProcessGroup&, Lane&) { FAIL() << "joined without a token"; })) {
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status.ToString();
  }
}

TEST(ProcessGroup, LeavesNothingInSharedMemoryFolders) {
  const auto entries = [] {
    int count = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
      count += entry.path().filename().string().find("polyreme") != std::string::npos;
    }
    return count;
  };
  RanksOptions options;
  options.kind = Kind::kSharedMemory;
  options.shards = 4;
  ExpectAllWell(options, [&](ProcessGroup&, Lane&) { EXPECT_EQ(entries(), 0); });
  EXPECT_EQ(entries(), 0);
}

// Stands for the plugin: gives each group an id, which must reach all its members.
class CountingFactory final : public CommunicatorFactory {
 public:
  absl::StatusOr<std::string> MakeId() override { return fmt::format("id {}", ++num_ids_); }
  absl::StatusOr<std::unique_ptr<Communicator>> Make(const GroupSpec& group,
                                                     const std::string& id) override {
    const std::lock_guard lock(mutex_);
    ids_[group.name].insert(id);
    ++num_members_;
    return MakeOneRankCommunicator(group.name);
  }
  std::map<std::string, std::set<std::string>> ids() {
    const std::lock_guard lock(mutex_);
    return ids_;
  }
  int num_members() {
    const std::lock_guard lock(mutex_);
    return num_members_;
  }

 private:
  std::atomic<int> num_ids_{0};
  std::mutex mutex_;
  std::map<std::string, std::set<std::string>> ids_;  // guarded by mutex_
  int num_members_ = 0;                               // guarded by mutex_
};

TEST(ProcessGroup, TakesCommunicatorsFromAFactoryAndCarriesItsIds) {
  CountingFactory factory;
  RanksOptions options;
  options.kind = Kind::kNccl;
  options.stages = 2;
  options.shards = 2;
  options.adjust = [&](Rank, ProcessGroup::Options& join) { join.nccl = &factory; };
  ExpectAllWell(options, [](ProcessGroup& group, Lane&) {
    EXPECT_TRUE(group.has_feedback());  // over the host, beside the factory's
  });
  EXPECT_EQ(factory.num_members(), 8);
  EXPECT_EQ(factory.ids().size(), 4u);  // two tensor groups, two columns
  for (const auto& [group, ids] : factory.ids()) EXPECT_EQ(ids.size(), 1u) << group;
  options.adjust = [](Rank, ProcessGroup::Options&) {};
  for (const absl::Status& status : RunRanks(options, [](ProcessGroup&, Lane&) {})) {
    EXPECT_TRUE(absl::IsFailedPrecondition(status));
    EXPECT_THAT(Message(status), HasSubstr("plugin"));
  }
}

}  // namespace
}  // namespace polyreme::comm
