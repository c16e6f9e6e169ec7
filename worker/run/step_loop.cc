#include "worker/run/step_loop.h"

#include <utility>

#include "parallel/base/clock.h"
#include "parallel/base/limits.h"

namespace polyreme::run {

// The queue of plans holds as many as may be in flight: what the coordinator sends beyond is its
// mistake.
StepLoop::StepLoop(ModelRunner& runner, int32_t max_steps_in_flight, Answer answer)
    : runner_(runner),
      answer_(std::move(answer)),
      plans_(static_cast<size_t>(max_steps_in_flight)),
      enqueued_(static_cast<size_t>(max_steps_in_flight)),
      steps_([this] { RunSteps(); }),
      answers_([this] { RunAnswers(); }) {}

StepLoop::~StepLoop() {
  Stop();
  Join();
}

absl::Status StepLoop::Submit(step::StepPlan plan) {
  return plans_.TryPush(std::move(plan));
}

void StepLoop::Stop() {
  plans_.Close(Cancelled("the worker was stopped in order"));
}

void StepLoop::Abort(const absl::Status& why) {
  {
    const std::lock_guard lock(mutex_);
    if (failure_.ok()) failure_ = why;
  }
  runner_.Abort(why);
  plans_.Close(why);
  enqueued_.Close(why);
}

void StepLoop::Join() {
  if (steps_.joinable()) steps_.join();
  if (answers_.joinable()) answers_.join();
}

void StepLoop::RunSteps() {
  while (true) {
    const absl::StatusOr<step::StepPlan> plan = plans_.Pop(absl::InfiniteFuture());
    if (!plan.ok()) return enqueued_.Close(plan.status());
    absl::Status status = runner_.Enqueue(*plan);
    if (status.ok()) status = enqueued_.Push(plan->id, MonotonicNow() + limits::kStepPatience);
    if (!status.ok()) return Abort(status);
  }
}

void StepLoop::RunAnswers() {
  while (true) {
    const absl::StatusOr<StepId> step = enqueued_.Pop(absl::InfiniteFuture());
    if (!step.ok()) break;
    absl::StatusOr<step::StepResult> result =
        runner_.Collect(*step, MonotonicNow() + limits::kStepPatience);
    if (!result.ok()) {
      Abort(result.status());
      break;
    }
    answer_(std::move(result));
  }
  absl::Status failure;
  {
    const std::lock_guard lock(mutex_);
    failure = failure_;
  }
  if (!failure.ok()) answer_(failure);
}

}  // namespace polyreme::run
