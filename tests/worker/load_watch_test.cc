#include "worker/run/load_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace polyreme::run {
namespace {

using ::testing::HasSubstr;

class HandClock final : public Clock {
 public:
  absl::Time Now() const override { return now; }
  absl::Time now = absl::FromUnixSeconds(1000);
};

class LoadWatchTest : public testing::Test {
 protected:
  void Pass(int seconds) { clock_.now += absl::Seconds(seconds); }

  HandClock clock_;
  LoadWatch::Effort effort_;
  LoadWatch watch_{clock_, [this] { return effort_; }};
};

TEST_F(LoadWatchTest, OneThatReadsNothingAndDoesNothingIsComplainedOf) {
  EXPECT_EQ(watch_.Complaint(), "") << "nothing is loading";
  watch_.Mark(1 << 29, 1 << 30, absl::Seconds(20));
  Pass(20);
  EXPECT_EQ(watch_.Complaint(), "");
  Pass(1);
  EXPECT_THAT(watch_.Complaint(), HasSubstr("for 21s, at 0.50 of 1.00 GiB"));
  watch_.Mark(1 << 30, 1 << 30, absl::Seconds(20));
  EXPECT_EQ(watch_.Complaint(), "") << "it goes on";
  Pass(30);
  EXPECT_NE(watch_.Complaint(), "");
  watch_.End();
  EXPECT_EQ(watch_.Complaint(), "");
}

TEST_F(LoadWatchTest, ALargeTensorOnASlowDiskIsNoStandstill) {
  watch_.Mark(0, 1 << 30, absl::Seconds(20));
  for (int i = 0; i < 30; ++i) {
    Pass(10);
    effort_.pages += 100;
    EXPECT_EQ(watch_.Complaint(), "") << i;
  }
  for (int i = 0; i < 30; ++i) {
    Pass(10);
    effort_.cpu += absl::Seconds(2);
    EXPECT_EQ(watch_.Complaint(), "") << i;
  }
}

TEST_F(LoadWatchTest, WhatTheProcessDoesBesideAHangingLoaderIsNoSignOfIt) {
  watch_.Mark(0, 1 << 30, absl::Seconds(20));
  for (int i = 0; i < 20; ++i) {
    Pass(2);
    effort_.cpu += absl::Milliseconds(10);
  }
  EXPECT_NE(watch_.Complaint(), "");
}

TEST(LoadWatch, SeesTheWorkOfThisProcess) {
  const LoadWatch::Effort before = LoadWatch::OfThisProcess();
  volatile double sink = 0;
  LoadWatch::Effort after = before;
  while (after.cpu - before.cpu < absl::Milliseconds(20)) {
    for (int i = 0; i < 100000; ++i) sink = sink + i;
    after = LoadWatch::OfThisProcess();
  }
  EXPECT_GE(after.pages, before.pages);
}

}  // namespace
}  // namespace polyreme::run
