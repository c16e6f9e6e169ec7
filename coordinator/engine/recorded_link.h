// Writes the steps of a link into the flight recorder: handed to the workers, and answered by all.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <utility>

#include "coordinator/engine/worker_link.h"
#include "parallel/trace/flight_ring.h"

namespace polyreme::engine {

class RecordedLink final : public WorkerLink {
 public:
  // link and ring are borrowed. on_lost: called with the reason before the link recovers; the ring
  // then still holds the lost epoch.
  RecordedLink(WorkerLink& link, Epoch epoch, trace::FlightRing& ring,
               std::function<void(const absl::Status&)> on_lost);

  absl::Status Submit(const step::StepPlan& plan) override;
  absl::StatusOr<step::StepResult> Await(StepId step, absl::Time deadline) override;
  absl::Status failure() const override { return link_.failure(); }
  absl::StatusOr<Epoch> Recover(const absl::Status& why) override;
  void Abort(Epoch epoch) noexcept override { link_.Abort(epoch); }

 private:
  WorkerLink& link_;
  trace::FlightRing& ring_;
  const std::function<void(const absl::Status&)> on_lost_;
  std::deque<std::pair<StepId, uint64_t>> in_flight_;  // with the ring's tickets; oldest first
};

}  // namespace polyreme::engine
