#include "coordinator/api/task_pool.h"

#include <utility>

#include "parallel/base/out_of_memory.h"

namespace polyreme::api {

TaskPool::TaskPool(int32_t num_threads, int32_t max_queued)
    : queue_(static_cast<size_t>(max_queued)) {
  CHECK(num_threads > 0);
  for (int32_t i = 0; i < num_threads; ++i) {
    threads_.emplace_back([this] {
      // Woken by a task or by Close, so that the deadline is only a formality.
      while (!queue_.closed()) {
        auto task = queue_.Pop(MonotonicNow() + absl::Hours(1));
        if (task.ok() && !queue_.closed()) EndIfOutOfMemory("a thread of tasks", *task);
      }
    });
  }
}

TaskPool::~TaskPool() {
  Stop();
}

void TaskPool::Stop() {
  queue_.Close(Cancelled("the server has stopped"));
  threads_.clear();
  while (queue_.TryPop().has_value()) {
  }
}

absl::Status TaskPool::TryRun(std::function<void()> task) {
  if (queue_.TryPush(std::move(task)).ok()) return absl::OkStatus();
  if (queue_.closed()) return Unavailable("the server is stopping");
  return ResourceExhausted("expected fewer than {} requests waiting to be tokenized",
                           queue_.capacity());
}

}  // namespace polyreme::api
