// Knows whether the engine thread still comes round: each of its rounds calls the link.
#pragma once

#include <atomic>
#include <cstdint>

#include "coordinator/engine/worker_link.h"
#include "parallel/base/clock.h"

namespace polyreme::engine {

class PulsedLink final : public WorkerLink {
 public:
  // link and clock are borrowed.
  PulsedLink(WorkerLink& link, const Clock& clock);

  // For how long the thread has done neither: called the link, or waited in it for the workers,
  // whose hangs are others' business. Takes no lock; any thread.
  absl::Duration Stillness() const;

  absl::Status Submit(const step::StepPlan& plan) override;
  absl::StatusOr<step::StepResult> Await(StepId step, absl::Time deadline) override;
  absl::Status failure() const override;
  absl::StatusOr<Epoch> Recover(const absl::Status& why) override;
  void Abort(Epoch epoch) noexcept override { link_.Abort(epoch); }

 private:
  // From now on it is expected back by `until`.
  void Expect(absl::Time until) const;

  WorkerLink& link_;
  const Clock& clock_;
  mutable std::atomic<int64_t> expected_ns_;
};

}  // namespace polyreme::engine
