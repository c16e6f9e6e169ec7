// A few threads and a bounded queue for what must not hold up a socket: parsing and tokenizing
// requests.
#pragma once

#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "parallel/base/bounded_queue.h"
#include "parallel/base/status.h"

namespace polyreme::api {

class TaskPool {
 public:
  // Both > 0.
  TaskPool(int32_t num_threads, int32_t max_queued);
  ~TaskPool();  // as Stop

  // Never waits. ResourceExhausted when the queue is full. Any thread.
  absl::Status TryRun(std::function<void()> task);
  // Takes no more, drops what is queued, waits for what runs. Not from a task.
  void Stop();

 private:
  BoundedQueue<std::function<void()>> queue_;
  std::vector<std::jthread> threads_;
};

}  // namespace polyreme::api
