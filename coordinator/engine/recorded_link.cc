#include "coordinator/engine/recorded_link.h"

namespace polyreme::engine {

RecordedLink::RecordedLink(WorkerLink& link, Epoch epoch, trace::FlightRing& ring,
                           std::function<void(const absl::Status&)> on_lost)
    : link_(link), ring_(ring), on_lost_(std::move(on_lost)) {
  ring_.BeginEpoch(epoch);
}

absl::Status RecordedLink::Submit(const step::StepPlan& plan) {
  const uint64_t ticket = ring_.BeginStep(plan.id, std::ssize(plan.tokens));
  const absl::Status sent = link_.Submit(plan);
  ring_.MarkStep(ticket, sent.ok() ? trace::FlightState::kEnqueued : trace::FlightState::kFailed);
  if (sent.ok()) in_flight_.emplace_back(plan.id, ticket);
  return sent;
}

absl::StatusOr<step::StepResult> RecordedLink::Await(StepId step, absl::Time deadline) {
  absl::StatusOr<step::StepResult> result = link_.Await(step, deadline);
  if (!in_flight_.empty() && in_flight_.front().first == step) {
    ring_.MarkStep(in_flight_.front().second,
                   result.ok() ? trace::FlightState::kFinished : trace::FlightState::kFailed);
    in_flight_.pop_front();
  }
  return result;
}

absl::StatusOr<Epoch> RecordedLink::Recover(const absl::Status& why) {
  on_lost_(why);
  in_flight_.clear();
  absl::StatusOr<Epoch> next = link_.Recover(why);
  if (next.ok()) ring_.BeginEpoch(*next);
  return next;
}

}  // namespace polyreme::engine
