// The first error of a lane and the hook that hears of it; what every kind of lane has in common.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "parallel/base/status.h"

namespace polyreme::backend {

// See Lane for what the methods promise. Any thread.
class LaneFailure {
 public:
  bool ok() const { return !failed_.load(std::memory_order_acquire); }
  absl::Status status() const;
  void Fail(absl::Status why);
  // A hook set after the failure runs at once.
  void SetHook(std::function<void(const absl::Status&)> hook);
  // Sleeps until the lane fails, or for `time`.
  void AwaitFailure(std::chrono::microseconds time) const;

 private:
  std::atomic<bool> failed_{false};
  mutable std::mutex mutex_;
  mutable std::condition_variable failed_signal_;
  absl::Status first_error_ ABSL_GUARDED_BY(mutex_);
  std::function<void(const absl::Status&)> hook_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace polyreme::backend
