// The two threads of a worker's epoch: one enqueues plans in StepId order, one collects their
// results in the same order.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

#include "parallel/base/bounded_queue.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/step/step_plan.h"
#include "worker/run/model_runner.h"

namespace polyreme::run {

// Any failure poisons the epoch: the group is aborted, the failure is handed on once, and nothing
// comes after it.
class StepLoop {
 public:
  // Called by the answer thread: each step's result in order or, as the last call, the failure that
  // ended the loop.
  using Answer = std::function<void(absl::StatusOr<step::StepResult>)>;

  // Starts both threads. runner is borrowed and outlives the loop; nobody else uses it meanwhile.
  StepLoop(ModelRunner& runner, int32_t max_steps_in_flight, Answer answer);
  // Stop, then Join.
  ~StepLoop();

  // Never waits. ResourceExhausted: more plans than may be in flight; the reason once the loop has
  // ended. Any thread.
  absl::Status Submit(step::StepPlan plan);
  // Ends in order: plans submitted so far are computed and answered. Any thread.
  void Stop();
  // Ends at once: what is in flight fails, here and at the peers. Any thread.
  void Abort(const absl::Status& why);
  // Returns when both threads have ended. Not from the answer.
  void Join();

 private:
  void RunSteps();
  void RunAnswers();

  ModelRunner& runner_;
  const Answer answer_;
  BoundedQueue<step::StepPlan> plans_;
  BoundedQueue<StepId> enqueued_;
  std::mutex mutex_;
  absl::Status failure_;  // guarded by mutex_; the first
  std::thread steps_;
  std::thread answers_;
};

}  // namespace polyreme::run
