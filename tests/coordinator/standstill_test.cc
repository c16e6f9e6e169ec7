#include "coordinator/engine/standstill.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace polyreme::engine {
namespace {

using ::testing::HasSubstr;
using ::testing::Optional;

class StandstillTest : public testing::Test {
 protected:
  // Rank `rank` of three says that it waits for `peer`.
  std::optional<std::string> Say(int32_t rank, int32_t peer) {
    return standstill_.Report(rank, peer, absl::Seconds(5), idle_, now_);
  }
  void Pass(double seconds) { now_ += absl::Seconds(seconds); }

  Standstill standstill_{3};
  std::vector<bool> idle_ = {false, false, false};
  absl::Time now_ = absl::FromUnixSeconds(1000);
};

TEST_F(StandstillTest, IsWhenAllWaitForOneAnotherForAWhile) {
  EXPECT_EQ(Say(0, 1), std::nullopt);
  EXPECT_EQ(Say(1, 0), std::nullopt);
  EXPECT_EQ(Say(2, 0), std::nullopt) << "what was sent last may be on its way";
  Pass(1);
  EXPECT_EQ(Say(0, 1), std::nullopt);
  Pass(1);
  EXPECT_THAT(Say(1, 0),
              Optional(HasSubstr("rank 0 waits for rank 1, rank 1 waits for rank 0, rank 2 "
                                 "waits for rank 0")));
}

TEST_F(StandstillTest, IsNotWhileSomebodyComputesHoweverLong) {
  for (int i = 0; i < 300; ++i) {
    EXPECT_EQ(Say(0, 2), std::nullopt);
    EXPECT_EQ(Say(1, 2), std::nullopt);
    Pass(1);
  }
}

TEST_F(StandstillTest, WhoHasAnsweredAllHasNothingToSend) {
  idle_[2] = true;
  EXPECT_EQ(Say(0, 2), std::nullopt);
  EXPECT_EQ(Say(1, 2), std::nullopt);
  Pass(2);
  EXPECT_THAT(Say(0, 2), Optional(HasSubstr("rank 0 waits for rank 2")));
}

TEST_F(StandstillTest, WhenNothingIsInFlightNobodyStands) {
  idle_ = {true, true, true};
  for (int i = 0; i < 10; ++i) {
    for (int32_t rank = 0; rank < 3; ++rank) EXPECT_EQ(Say(rank, 0), std::nullopt);
    Pass(1);
  }
}

TEST_F(StandstillTest, BeginsAnewWhenOneHasGoneOnMeanwhile) {
  EXPECT_EQ(Say(0, 1), std::nullopt);
  EXPECT_EQ(Say(1, 0), std::nullopt);
  EXPECT_EQ(Say(2, 0), std::nullopt);
  Pass(1);
  EXPECT_EQ(Say(0, 1), std::nullopt);
  EXPECT_EQ(Say(1, 0), std::nullopt);
  Pass(2);  // rank 2 has said nothing since
  EXPECT_EQ(Say(0, 1), std::nullopt);
  EXPECT_EQ(Say(1, 0), std::nullopt);
  EXPECT_EQ(Say(2, 0), std::nullopt);
  Pass(1);
  EXPECT_EQ(Say(0, 1), std::nullopt);
  EXPECT_EQ(Say(1, 0), std::nullopt);
  EXPECT_EQ(Say(2, 0), std::nullopt);
  Pass(1);
  EXPECT_NE(Say(2, 0), std::nullopt);
}

TEST_F(StandstillTest, OfAnEpochThatIsOverCountsForNothing) {
  for (int32_t rank = 0; rank < 3; ++rank) EXPECT_EQ(Say(rank, 0), std::nullopt);
  standstill_.Restart(3);
  Pass(2);
  EXPECT_EQ(Say(0, 1), std::nullopt);
  EXPECT_EQ(standstill_.Report(7, 0, absl::Seconds(5), idle_, now_), std::nullopt);
}

}  // namespace
}  // namespace polyreme::engine
