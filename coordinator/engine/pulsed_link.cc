#include "coordinator/engine/pulsed_link.h"

#include <algorithm>

namespace polyreme::engine {
namespace {

constexpr absl::Duration kSlice = absl::Seconds(1);

}  // namespace

PulsedLink::PulsedLink(WorkerLink& link, const Clock& clock) : link_(link), clock_(clock) {
  Expect(clock_.Now());
}

void PulsedLink::Expect(absl::Time until) const {
  expected_ns_ = absl::ToUnixNanos(until);  // saturates for InfiniteFuture
}

absl::Duration PulsedLink::Stillness() const {
  return std::max(clock_.Now() - absl::FromUnixNanos(expected_ns_), absl::ZeroDuration());
}

absl::Status PulsedLink::Submit(const step::StepPlan& plan) {
  Expect(clock_.Now());
  return link_.Submit(plan);
}

// In slices, each of which is expected back by its end: a thread that hangs in its wait is not
// taken for one that waits.
absl::StatusOr<step::StepResult> PulsedLink::Await(StepId step, absl::Time deadline) {
  for (;;) {
    const absl::Time until = std::min(deadline, clock_.Now() + kSlice);
    Expect(until);
    absl::StatusOr<step::StepResult> result = link_.Await(step, until);
    Expect(clock_.Now());
    if (until == deadline || !absl::IsDeadlineExceeded(result.status())) return result;
    RETURN_IF_ERROR(link_.failure());  // which may itself be a deadline's
  }
}

absl::Status PulsedLink::failure() const {
  Expect(clock_.Now());
  return link_.failure();
}

// Has deadlines of its own, as many as there are losses meanwhile.
absl::StatusOr<Epoch> PulsedLink::Recover(const absl::Status& why) {
  Expect(absl::InfiniteFuture());
  absl::StatusOr<Epoch> next = link_.Recover(why);
  Expect(clock_.Now());
  return next;
}

}  // namespace polyreme::engine
