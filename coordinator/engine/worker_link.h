// All workers as one thing: plans in, results out, in StepId order.
//
// Implementations: gRPC streams (cluster.h) and a null model that answers at once (null_link.h); a
// simulated network will be the next. The seam that lets the coordinator be tested without a
// worker.
#pragma once

#include "absl/time/time.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/step/step_plan.h"

namespace polyreme::engine {

class WorkerLink {
 public:
  virtual ~WorkerLink() = default;
  // Hands the plan to every worker and returns at once. Unavailable when a worker is lost. Engine
  // thread.
  virtual absl::Status Submit(const step::StepPlan& plan) = 0;
  // Waits until every worker has answered `step`, the oldest in flight; the merged result.
  // Unavailable names the lost rank, DeadlineExceeded the ranks that have not answered. Engine
  // thread.
  virtual absl::StatusOr<step::StepResult> Await(StepId step, absl::Time deadline) = 0;
  // Why the epoch is lost, or ok: an engine that awaits nothing asks. Engine thread.
  virtual absl::Status failure() const { return absl::OkStatus(); }
  // Ends the epoch, which is lost for `why`, on all workers and brings them together in the next
  // one, in which no slot is open; blocks. An error is final: the workers do not come back. Engine
  // thread.
  virtual absl::StatusOr<Epoch> Recover(const absl::Status& why) { return why; }
  // Ends the epoch on all workers for good, a recovery included; every Await fails from now on. Any
  // thread.
  virtual void Abort(Epoch epoch) noexcept = 0;
};

}  // namespace polyreme::engine
