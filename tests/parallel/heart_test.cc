// What an agent makes of its children's beats.
#include "parallel/launch/heart.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>

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

// The beats of a heart in this process.
class HeartTest : public testing::Test {
 protected:
  HeartTest() {
    EXPECT_EQ(pipe2(ends_, O_CLOEXEC | O_NONBLOCK), 0);
    setenv(kHeartVariable, std::to_string(ends_[1]).c_str(), 1);
    heart_ = Heart::Start();
  }
  ~HeartTest() override {
    heart_.reset();
    unsetenv(kHeartVariable);
    close(ends_[0]);
    close(ends_[1]);
  }

  std::string Read() {
    char bytes[4096];
    const ssize_t n = read(ends_[0], bytes, sizeof(bytes));
    return n <= 0 ? "" : std::string(bytes, static_cast<size_t>(n));
  }
  bool WaitForBeat() {
    pollfd entry{ends_[0], POLLIN, 0};
    return poll(&entry, 1, 10'000) == 1 && Read().find("beat") != std::string::npos;
  }

  int ends_[2] = {-1, -1};
  std::unique_ptr<Heart> heart_;
};

TEST_F(HeartTest, DoesNotBeatWhileSomethingInItStandsStill) {
  ASSERT_TRUE(WaitForBeat());
  std::atomic<int> num_asked = 0;
  std::atomic<bool> stands_still = true;
  heart_->SetComplaint([&] {
    ++num_asked;
    return std::string(stands_still ? "a thread has not come round" : "");
  });
  Read();
  while (num_asked < 3) poll(nullptr, 0, 1);
  EXPECT_EQ(Read(), "");
  stands_still = false;
  EXPECT_TRUE(WaitForBeat());
  stands_still = true;
  while (num_asked < 6) poll(nullptr, 0, 1);
  heart_->SetComplaint(nullptr);
  Read();
  EXPECT_TRUE(WaitForBeat());
}

}  // namespace
}  // namespace polyreme::launch
