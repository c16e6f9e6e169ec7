#include "coordinator/api/task_pool.h"

#include <utility>

namespace polyreme::api {

TaskPool::TaskPool(int32_t num_threads, int32_t max_queued)
    : max_queued_(static_cast<size_t>(max_queued)) {
  CHECK(num_threads > 0 && max_queued > 0);
  for (int32_t i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Work(); });
}

TaskPool::~TaskPool() {
  Stop();
}

void TaskPool::Work() {
  while (true) {
    std::shared_ptr<Errand> errand;
    {
      std::unique_lock lock(mutex_);
      // Woken by an errand or by Stop.
      changed_.wait(lock, [this] { return stops_ || queue_.size() > 0; });
      if (stops_) return;
      errand = queue_.Pop();
    }
    RunOrGiveUp(*errand);
  }
}

void TaskPool::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stops_ = true;
  }
  changed_.notify_all();
  threads_.clear();
  while (true) {
    std::shared_ptr<Errand> dropped;  // not under the lock: what it holds may end with it
    const std::lock_guard lock(mutex_);
    dropped = queue_.Pop();
    if (dropped == nullptr) return;
  }
}

absl::Status TaskPool::TryRun(std::function<void()> task) {
  std::shared_ptr<Errand> errand = MakeErrand(std::move(task), [] {
    CHECK(false, "a task: out of memory, and nobody could make do without");
  });
  {
    const std::lock_guard lock(mutex_);
    if (stops_) return Unavailable("the server is stopping");
    if (queue_.size() >= max_queued_) {
      return ResourceExhausted("expected fewer than {} requests waiting to be tokenized",
                               max_queued_);
    }
    queue_.Push(std::move(errand));
  }
  changed_.notify_one();
  return absl::OkStatus();
}

void TaskPool::Give(std::shared_ptr<Errand> errand) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (stops_) return;
    queue_.Push(std::move(errand));
  }
  changed_.notify_one();
}

}  // namespace polyreme::api
