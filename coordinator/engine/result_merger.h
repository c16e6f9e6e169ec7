// Puts the answers of all ranks together: a step is done when every rank has answered it.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/step/step_plan.h"

namespace polyreme::engine {

// Thread-safe: readers of the workers' streams add, the engine thread expects and awaits.
class ResultMerger {
 public:
  ResultMerger(int32_t world_size, Epoch epoch) : world_size_(world_size), epoch_(epoch) {}

  // A step was handed to all ranks; steps come in StepId order. The failure, if there was one.
  absl::Status Expect(StepId step);
  // Forgets everything, the failure included; `epoch` begins.
  void Restart(Epoch epoch);
  // One rank's answer. One of an epoch that is over is ignored; one of an epoch to come, of a step
  // that is not in flight, or given twice fails everything: it is a worker that runs wild. Returns
  // that mistake, and no failure of before.
  absl::Status Add(Rank rank, step::StepResult result);
  // Ends all waits, now and later. The first reason stays.
  void Fail(absl::Status why);
  // Waits for the oldest step in flight, which must be `step`. DeadlineExceeded names the ranks
  // that are missing.
  absl::StatusOr<step::StepResult> Await(StepId step, absl::Time deadline);
  // By rank, whether it has answered every step that is in flight.
  std::vector<bool> IdleRanks() const;
  absl::Status failure() const;

 private:
  struct Pending {
    step::StepResult merged;
    std::vector<bool> answered;
    int32_t num_answered = 0;
  };
  absl::Status FailLocked(absl::Status why);  // returns `why`

  const int32_t world_size_;
  mutable std::mutex mutex_;
  Epoch epoch_;  // guarded by mutex_
  std::condition_variable changed_;
  std::deque<Pending> pending_;  // guarded by mutex_; by StepId
  absl::Status failure_;         // guarded by mutex_
};

}  // namespace polyreme::engine
