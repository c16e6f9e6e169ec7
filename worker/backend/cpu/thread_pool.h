// The threads of one rank, for the loops inside an op.
//
// Several ranks may share few cores, so nobody spins for long: a worker that finds no work for some
// microseconds sleeps, and a loop never waits for a worker that has not woken up in time to take
// part in it.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace polyreme::backend {

class ThreadPool {
 public:
  // num_threads >= 1 counts the caller: a pool of one has no threads of its own.
  explicit ThreadPool(int32_t num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int32_t num_threads() const { return static_cast<int32_t>(workers_.size()) + 1; }

  // body(i) once for each i of [0, count), on any thread of the pool and in any order; returns when
  // all are done. One caller at a time; not from within a body.
  void ParallelFor(int64_t count, absl::FunctionRef<void(int64_t)> body);

 private:
  void WorkerLoop();
  void RunShare();
  // Spins, then sleeps, until state_ is no longer `seen`; returns its new value.
  uint32_t AwaitChange(uint32_t seen) const;

  // The loop being run. Written by the caller while no worker takes part.
  const absl::FunctionRef<void(int64_t)>* body_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  // The loop's number, whether it may still be joined, whether the pool is closing, and how many
  // take part.
  std::atomic<uint32_t> state_{0};
  std::vector<std::thread> workers_;
};

}  // namespace polyreme::backend
