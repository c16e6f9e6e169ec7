// Which rank fell behind, from records as failures leave them.

#include "parallel/trace/flight_story.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace polyreme::trace {
namespace {

using ::testing::HasSubstr;

absl::Time At(double seconds) {
  return absl::FromUnixSeconds(1000) + absl::Seconds(seconds);
}

// One rank's record, told as it happened.
class Teller {
 public:
  Teller(int32_t rank, int32_t stages, int32_t shards) {
    record_.rank = rank;
    record_.stages = stages;
    record_.shards = shards;
    record_.launch = "job";
    record_.epoch = Epoch{2};
  }
  Teller& Step(int64_t step, FlightState state, double time) {
    FlightEvent event;
    event.state = state;
    event.step = StepId{step};
    return Add(event, time, record_.steps);
  }
  Teller& Collective(int64_t sequence, FlightState state, double time,
                     FlightKind kind = FlightKind::kAllReduce) {
    FlightEvent event;
    event.kind = kind;
    event.group = FlightGroup::kTensor;
    event.state = state;
    event.sequence = sequence;
    return Add(event, time, record_.operations);
  }
  Teller& Message(FlightKind kind, int32_t peer, int64_t sequence, FlightState state, double time) {
    FlightEvent event;
    event.kind = kind;
    event.group = FlightGroup::kPipeline;
    event.state = state;
    event.peer = peer;
    event.sequence = sequence;
    return Add(event, time, record_.operations);
  }
  Teller& LastSign(double time) {
    record_.last_sign = At(time);
    return *this;
  }
  operator FlightRecord() const { return record_; }

 private:
  Teller& Add(FlightEvent event, double time, std::vector<FlightEvent>& events) {
    event.epoch = record_.epoch;
    event.started = At(time);
    events.push_back(event);
    return LastSign(time);
  }
  FlightRecord record_;
};

constexpr auto kFinished = FlightState::kFinished;
constexpr auto kFailed = FlightState::kFailed;
constexpr auto kStarted = FlightState::kStarted;
constexpr auto kEnqueued = FlightState::kEnqueued;

TEST(FlightVerdict, IsTheRankThatHasNotBegunWhatAnotherWaitsIn) {
  const FlightVerdict verdict = JudgeFlight({
      Teller(0, 1, 2).Step(8, kFinished, 1).Collective(41, kFinished, 1).Collective(42, kFailed, 2),
      Teller(1, 1, 2).Step(8, kFinished, 1).Collective(41, kFinished, 1).LastSign(9),
  });
  EXPECT_EQ(verdict.rank, 1);
  EXPECT_THAT(verdict.why, HasSubstr("rank 0 waits in all-reduce #42"));
}

TEST(FlightVerdict, IsTheSilentOneIfBothWereInTheSameCollective) {
  const FlightVerdict verdict = JudgeFlight({
      Teller(0, 1, 2).Collective(42, kStarted, 2),
      Teller(1, 1, 2).Collective(42, kFailed, 2).LastSign(12),
  });
  EXPECT_EQ(verdict.rank, 0);
}

TEST(FlightVerdict, IsNotTheLaterStageThatWaitsForAnEarlierOne) {
  // Stage 1 has done less, because stage 0 (rank 0) stands still.
  const FlightVerdict verdict = JudgeFlight({
      Teller(0, 2, 1)
          .Step(8, kEnqueued, 1)
          .Message(FlightKind::kSend, 1, 8, kFinished, 1)
          .Step(9, kStarted, 2),
      Teller(1, 2, 1)
          .Step(7, kFinished, 1)
          .Message(FlightKind::kReceive, 0, 8, kFinished, 1)
          .Step(8, kEnqueued, 1)
          .Message(FlightKind::kReceive, 0, 9, kFailed, 2)
          .LastSign(12),
  });
  EXPECT_EQ(verdict.rank, 0);
  EXPECT_THAT(verdict.why, HasSubstr("receive #9 from stage 0"));
}

TEST(FlightVerdict, IsTheLastStageIfItsTokensAreWaitedFor) {
  const FlightVerdict verdict = JudgeFlight({
      Teller(0, 2, 1)
          .Step(9, kStarted, 2)
          .Message(FlightKind::kAwaitTokens, 1, 8, kFailed, 2)
          .LastSign(12),
      Teller(1, 2, 1).Step(7, kFinished, 1).Step(8, kStarted, 2),
  });
  EXPECT_EQ(verdict.rank, 1);
}

TEST(FlightVerdict, FollowsAChainOfWaitsToItsEnd) {
  // Rank 2 waits for rank 3 of its stage; rank 0 for the tokens of rank 2; rank 1 for those of 3.
  const FlightVerdict verdict = JudgeFlight({
      Teller(0, 2, 2).Message(FlightKind::kAwaitTokens, 1, 5, kFailed, 3).LastSign(12),
      Teller(1, 2, 2).Message(FlightKind::kAwaitTokens, 1, 5, kFailed, 3).LastSign(12),
      Teller(2, 2, 2).Step(4, kFinished, 1).Collective(10, kFailed, 2).LastSign(12),
      Teller(3, 2, 2).Step(4, kFinished, 1).Collective(9, kFinished, 2),
  });
  EXPECT_EQ(verdict.rank, 3);
}

TEST(FlightVerdict, WithoutOperationsIsTheRankWithTheFewestSteps) {
  const FlightVerdict verdict = JudgeFlight({
      Teller(0, 1, 2).Step(8, kFinished, 1).Step(9, kFinished, 2),
      Teller(1, 1, 2).Step(8, kFinished, 1).Step(9, kEnqueued, 2).LastSign(5),
  });
  EXPECT_EQ(verdict.rank, 1);
  EXPECT_THAT(verdict.why, HasSubstr("finished step 8"));
}

TEST(FlightVerdict, IsWithheldWhereNothingTellsRanksApart) {
  EXPECT_EQ(
      JudgeFlight({Teller(0, 1, 2).Step(8, kFinished, 1), Teller(1, 1, 2).Step(8, kFinished, 1)})
          .rank,
      std::nullopt);
  EXPECT_EQ(JudgeFlight({Teller(0, 1, 2).Step(8, kFinished, 1)}).rank, std::nullopt);
  EXPECT_EQ(JudgeFlight({}).rank, std::nullopt);
}

TEST(FlightStory, SaysWhoIsMissingAndWhatCameLast) {
  const std::string story =
      TellFlights({Teller(0, 1, 3).Step(8, kFinished, 1).Collective(41, kFailed, 2),
                   Teller(1, 1, 3).Step(8, kFinished, 1).Collective(40, kFinished, 1).LastSign(3)},
                  /*num_events=*/2);
  EXPECT_THAT(story, HasSubstr("launch job, epoch 2: 1 stages of 3 shards"));
  EXPECT_THAT(story, HasSubstr("no record of rank 2"));
  EXPECT_THAT(story, HasSubstr("verdict: rank 1 fell behind"));
  EXPECT_THAT(story, HasSubstr("... 2 earlier events"));
  EXPECT_THAT(story, HasSubstr("rank 0       all-reduce #41"));
}

}  // namespace
}  // namespace polyreme::trace
