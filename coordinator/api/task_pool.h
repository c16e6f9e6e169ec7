// A few threads and a bounded queue for what must not hold up a socket: parsing and tokenizing
// requests.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "coordinator/api/errand.h"
#include "parallel/base/status.h"

namespace polyreme::api {

class TaskPool {
 public:
  // Both > 0.
  TaskPool(int32_t num_threads, int32_t max_queued);
  ~TaskPool();  // as Stop

  // Never waits. ResourceExhausted when the queue is full. A task that lets std::bad_alloc out ends
  // the process. Any thread.
  absl::Status TryRun(std::function<void()> task);
  // The same for what has its memory already, and is as often in the queue as there are errands:
  // neither refused, but by a pool that stops, nor counted. Any thread.
  void Give(std::shared_ptr<Errand> errand) noexcept;
  // Takes no more, drops what is queued, waits for what runs. Not from a task.
  void Stop();

 private:
  void Work();

  const size_t max_queued_;
  std::mutex mutex_;
  std::condition_variable changed_;
  ErrandQueue queue_;  // guarded by mutex_, and so on
  bool stops_ = false;
  std::vector<std::jthread> threads_;
};

}  // namespace polyreme::api
