// The only channel between threads: bounded, closable, every wait with a deadline.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "parallel/base/clock.h"
#include "parallel/base/status.h"

namespace polyreme {

// First in, first out; any number of producers and consumers. Close is final: pushes fail with its
// status, pops drain what is left and then fail with it.
template <class T>
class BoundedQueue {
 public:
  // capacity > 0, in items.
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) { CHECK(capacity > 0); }

  // Never waits. ResourceExhausted when full; the status given to Close when closed.
  absl::Status TryPush(T item) {
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return why_;
      if (items_.size() >= capacity_) {
        return ResourceExhausted("queue is full: {} items", capacity_);
      }
      items_.push_back(std::move(item));
    }
    not_empty_.notify_one();
    return absl::OkStatus();
  }

  // Waits for room. DeadlineExceeded, or the status given to Close.
  absl::Status Push(T item, absl::Time deadline) {
    {
      std::unique_lock lock(mutex_);
      const bool woken = not_full_.wait_until(lock, ToSteady(deadline),
                                              [&] { return closed_ || items_.size() < capacity_; });
      if (!woken) return DeadlineExceeded("queue of {} items stayed full", capacity_);
      if (closed_) return why_;
      items_.push_back(std::move(item));
    }
    not_empty_.notify_one();
    return absl::OkStatus();
  }

  // Waits for an item. DeadlineExceeded, or the status given to Close once drained.
  absl::StatusOr<T> Pop(absl::Time deadline) {
    std::unique_lock lock(mutex_);
    const bool woken =
        not_empty_.wait_until(lock, ToSteady(deadline), [&] { return closed_ || !items_.empty(); });
    if (!woken) return DeadlineExceeded("queue stayed empty");
    if (items_.empty()) return why_;
    return Take(lock);
  }

  // Never waits; nullopt when empty, closed or not.
  std::optional<T> TryPop() {
    std::unique_lock lock(mutex_);
    if (items_.empty()) return std::nullopt;
    return Take(lock);
  }

  // Waits until an item is there or the queue is closed; false at the deadline. Takes nothing.
  bool WaitUntil(absl::Time deadline) {
    std::unique_lock lock(mutex_);
    return not_empty_.wait_until(lock, ToSteady(deadline),
                                 [&] { return closed_ || !items_.empty(); });
  }

  // Ends the queue; the first reason stays. `why` must not be ok.
  void Close(absl::Status why) {
    CHECK(!why.ok());
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return;
      closed_ = true;
      why_ = std::move(why);
    }
    not_empty_.notify_all();
    not_full_.notify_all();
  }

  size_t size() const {
    const std::lock_guard lock(mutex_);
    return items_.size();
  }
  bool closed() const {
    const std::lock_guard lock(mutex_);
    return closed_;
  }
  size_t capacity() const { return capacity_; }

 private:
  T Take(std::unique_lock<std::mutex>& lock) {
    T item = std::move(items_.front());
    items_.pop_front();
    lock.unlock();
    not_full_.notify_one();
    return item;
  }

  const size_t capacity_;
  mutable std::mutex mutex_;
  std::condition_variable not_empty_;
  std::condition_variable not_full_;
  std::deque<T> items_;  // guarded by mutex_
  bool closed_ = false;  // guarded by mutex_
  absl::Status why_;     // guarded by mutex_
};

}  // namespace polyreme
