#include "coordinator/engine/pulsed_link.h"

#include <gtest/gtest.h>

#include <algorithm>
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

// Answers at a time of its own; until then each wait lasts until its deadline.
class LateLink final : public WorkerLink {
 public:
  LateLink(HandClock& clock, absl::Time answers_at) : clock_(clock), answers_at_(answers_at) {}
  absl::Status Submit(const step::StepPlan&) override { return absl::OkStatus(); }
  absl::StatusOr<step::StepResult> Await(StepId step, absl::Time deadline) override {
    clock_.now = std::min(deadline, answers_at_);
    if (on_await) on_await(deadline);
    if (!lost.ok()) return lost;
    if (clock_.now == deadline) return DeadlineExceeded("step {} is late", step.value);
    step::StepResult result;
    result.id = step;
    return result;
  }
  absl::Status failure() const override { return lost; }
  void Abort(Epoch) noexcept override {}

  std::function<void(absl::Time deadline)> on_await;
  absl::Status lost;

 private:
  HandClock& clock_;
  const absl::Time answers_at_;
};

TEST(PulsedLink, WaitingForWorkersIsNoStandstill) {
  HandClock clock;
  const absl::Time begin = clock.now;
  LateLink late(clock, begin + absl::Seconds(100));
  PulsedLink link(late, clock);
  int num_waits = 0;
  late.on_await = [&](absl::Time) {
    EXPECT_EQ(link.Stillness(), absl::ZeroDuration());
    ++num_waits;
  };
  EXPECT_TRUE(link.Await(StepId{1}, begin + absl::Seconds(120)).ok());
  EXPECT_EQ(clock.now, begin + absl::Seconds(100));
  EXPECT_GT(num_waits, 10);
  clock.now = begin;
  EXPECT_EQ(Message(link.Await(StepId{2}, begin + absl::Seconds(90)).status()), "step 2 is late");
  EXPECT_EQ(clock.now, begin + absl::Seconds(90)) << "its deadline holds";
}

TEST(PulsedLink, AThreadThatHangsInItsWaitStandsStillLongBeforeTheWaitsDeadline) {
  HandClock clock;
  LateLink late(clock, clock.now + absl::Seconds(100));
  PulsedLink link(late, clock);
  absl::Duration stillness;
  late.on_await = [&](absl::Time deadline) {
    clock.now = deadline + absl::Seconds(9);
    stillness = link.Stillness();
    late.lost = Unavailable("enough");
  };
  EXPECT_FALSE(link.Await(StepId{1}, clock.now + absl::Seconds(120)).ok());
  EXPECT_EQ(stillness, absl::Seconds(9));
}

TEST(PulsedLink, ALossEndsTheWaitWhateverItsCode) {
  HandClock clock;
  LateLink late(clock, clock.now + absl::Seconds(100));
  PulsedLink link(late, clock);
  late.lost = DeadlineExceeded("a collective took too long");
  EXPECT_EQ(Message(link.Await(StepId{1}, clock.now + absl::Seconds(120)).status()),
            "a collective took too long");
}

TEST(PulsedLink, RecoveryHasDeadlinesOfItsOwnAndHandingOverWaitsForNobody) {
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
  pause = absl::Hours(1);
  EXPECT_FALSE(link.Recover(Unavailable("lost")).ok());
  EXPECT_EQ(stillness, absl::ZeroDuration());
  pause = absl::Seconds(9);
  EXPECT_FALSE(link.Submit({}).ok());
  EXPECT_EQ(stillness, absl::Seconds(9));
}

}  // namespace
}  // namespace polyreme::engine
