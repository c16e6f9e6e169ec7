#include "worker/backend/lane_failure.h"

#include <utility>

namespace polyreme::backend {

absl::Status LaneFailure::status() const {
  const std::lock_guard lock(mutex_);
  return first_error_;
}

void LaneFailure::Fail(absl::Status why) {
  CHECK(!why.ok());
  std::function<void(const absl::Status&)> hook;
  {
    const std::lock_guard lock(mutex_);
    if (!first_error_.ok()) return;
    first_error_ = why;
    failed_.store(true, std::memory_order_release);
    hook = std::exchange(hook_, nullptr);
  }
  failed_signal_.notify_all();
  if (hook) hook(why);
}

void LaneFailure::SetHook(std::function<void(const absl::Status&)> hook) {
  absl::Status why;
  {
    const std::lock_guard lock(mutex_);
    why = first_error_;
    if (why.ok()) hook_ = std::move(hook);
  }
  if (!why.ok() && hook) hook(why);
}

void LaneFailure::AwaitFailure(std::chrono::microseconds time) const {
  std::unique_lock lock(mutex_);
  failed_signal_.wait_for(lock, time, [this] { return !ok(); });
}

}  // namespace polyreme::backend
