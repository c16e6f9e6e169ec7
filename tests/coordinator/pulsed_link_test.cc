#include "coordinator/engine/pulsed_link.h"

#include <gtest/gtest.h>

#include <functional>

namespace polyreme::engine {
namespace {

class HandClock final : public Clock {
 public:
  absl::Time Now() const override { return now; }
  absl::Time now = absl::FromUnixSeconds(1000);
};

// Each call takes as long as a test says, and the test looks on while it does.
class SlowLink final : public WorkerLink {
 public:
  explicit SlowLink(std::function<void()> meanwhile) : meanwhile_(std::move(meanwhile)) {}
  absl::Status Submit(const step::StepPlan&) override { return Call(); }
  absl::StatusOr<step::StepResult> Await(StepId, absl::Time) override { return Call(); }
  absl::Status failure() const override { return Call(); }
  absl::StatusOr<Epoch> Recover(const absl::Status&) override { return Call(); }
  void Abort(Epoch) noexcept override {}

 private:
  absl::Status Call() const {
    meanwhile_();
    return Unavailable("the answer");
  }
  const std::function<void()> meanwhile_;
};

TEST(PulsedLink, TheTimeBetweenTwoCallsIsTheThreadsOwn) {
  HandClock clock;
  SlowLink slow([] {});
  PulsedLink link(slow, clock);
  const std::vector<std::function<absl::Status()>> calls = {
      [&] { return link.Submit({}); },
      [&] { return link.Await(StepId{1}, clock.now + absl::Seconds(120)).status(); },
      [&] { return link.failure(); },
      [&] { return link.Recover(Unavailable("lost")).status(); },
  };
  for (size_t i = 0; i < calls.size(); ++i) {
    clock.now += absl::Seconds(7);
    EXPECT_EQ(link.Stillness(), absl::Seconds(7)) << "before call " << i;
    EXPECT_EQ(Message(calls[i]()), "the answer");
    EXPECT_EQ(link.Stillness(), absl::ZeroDuration()) << "behind call " << i;
  }
}

TEST(PulsedLink, WaitingForWorkersIsNoStandstillUntilItsDeadline) {
  HandClock clock;
  PulsedLink* seen = nullptr;
  absl::Duration pause;
  absl::Duration stillness;
  SlowLink slow([&] {
    clock.now += pause;
    stillness = seen->Stillness();
  });
  PulsedLink link(slow, clock);
  seen = &link;
  pause = absl::Seconds(100);
  EXPECT_FALSE(link.Await(StepId{1}, clock.now + absl::Seconds(120)).ok());
  EXPECT_EQ(stillness, absl::ZeroDuration());
  pause = absl::Seconds(130);
  EXPECT_FALSE(link.Await(StepId{1}, clock.now + absl::Seconds(120)).ok());
  EXPECT_EQ(stillness, absl::Seconds(10)) << "it was to be back by then";
  pause = absl::Hours(1);
  EXPECT_FALSE(link.Recover(Unavailable("lost")).ok());
  EXPECT_EQ(stillness, absl::ZeroDuration());
  pause = absl::Seconds(9);
  EXPECT_FALSE(link.Submit({}).ok());
  EXPECT_EQ(stillness, absl::Seconds(9)) << "handing over waits for nobody";
}

}  // namespace
}  // namespace polyreme::engine
