// What an agent makes of its children's beats.
#include "parallel/launch/heart.h"

#include <gtest/gtest.h>

namespace polyreme::launch {
namespace {

TEST(HeartMonitor, SilenceIsJudgedFromTheFirstBeatOn) {
  HeartMonitor monitor;
  absl::Time now = absl::FromUnixSeconds(1000);
  EXPECT_FALSE(monitor.IsSilent(now + absl::Hours(1)));
  monitor.Take("beat 0\n", now);
  EXPECT_FALSE(monitor.has_served());
  EXPECT_FALSE(monitor.IsSilent(now + absl::Seconds(3)));
  EXPECT_TRUE(monitor.IsSilent(now + absl::Seconds(5)));
  monitor.Reset(now);
  EXPECT_FALSE(monitor.IsSilent(now + absl::Hours(1))) << "another first process";
}

TEST(HeartMonitor, ASuccessorMustBegin) {
  HeartMonitor monitor;
  const absl::Time now = absl::FromUnixSeconds(1000);
  monitor.Take("beat 1\n", now);
  monitor.Reset(now + absl::Minutes(1));
  EXPECT_FALSE(monitor.IsSilent(now + absl::Minutes(1) + absl::Seconds(7)));
  EXPECT_TRUE(monitor.IsSilent(now + absl::Minutes(1) + absl::Seconds(9)));
}

TEST(HeartMonitor, PatienceGrowsWithTheBeatsSeenAndIsBounded) {
  HeartMonitor monitor;
  absl::Time now = absl::FromUnixSeconds(1000);
  monitor.Take("beat 1\n", now);
  monitor.Take("beat 1\n", now += absl::Milliseconds(800));
  EXPECT_FALSE(monitor.IsSilent(now + absl::Seconds(6)));
  monitor.Take("beat 1\n", now += absl::Seconds(3));
  EXPECT_TRUE(monitor.IsSilent(now + absl::Seconds(9)));
}

TEST(HeartMonitor, TimeInWhichTheAgentDidNotRunIsNobodysSilence) {
  HeartMonitor monitor;
  const absl::Time now = absl::FromUnixSeconds(1000);
  monitor.Take("beat 1\n", now);
  monitor.Forgive(absl::Minutes(1));
  EXPECT_FALSE(monitor.IsSilent(now + absl::Seconds(63)));
}

TEST(HeartMonitor, LinesMayComeInPieces) {
  HeartMonitor monitor;
  const absl::Time now = absl::FromUnixSeconds(1000);
  monitor.Take("beat 0\nnote 127.0.0.1:7 tok", now);
  EXPECT_EQ(monitor.note(), "");
  monitor.Take("en\nbea", now);
  EXPECT_EQ(monitor.note(), "127.0.0.1:7 token");
  EXPECT_FALSE(monitor.has_served());
  monitor.Take("t 1\n", now);
  monitor.Reset(now);
  EXPECT_TRUE(monitor.has_served()) << "that outlives the process";
  EXPECT_EQ(monitor.note(), "127.0.0.1:7 token");
}

}  // namespace
}  // namespace polyreme::launch
