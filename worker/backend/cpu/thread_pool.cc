#include "worker/backend/cpu/thread_pool.h"

#include <immintrin.h>

#include "parallel/base/status.h"

namespace polyreme::backend {
namespace {

// state_, from the low bits up: 14 bits of participants, closing, open, 16 bits of the loop's
// number. The number only tells a worker a loop it has just left from the next one; if it wraps
// around, a worker misses a loop, no more.
constexpr uint32_t kParticipants = (1u << 14) - 1;
constexpr uint32_t kClosing = 1u << 14;
constexpr uint32_t kOpen = 1u << 15;
constexpr uint32_t kNumberShift = 16;
// A pause is 40 to 140 cycles: some ten microseconds in all, about the gap between two ops of a
// step.
constexpr int kSpins = 400;

}  // namespace

ThreadPool::ThreadPool(int32_t num_threads) {
  CHECK(num_threads >= 1 && num_threads <= static_cast<int32_t>(kParticipants),
        "a pool of {} threads", num_threads);
  workers_.reserve(static_cast<size_t>(num_threads - 1));
  for (int32_t i = 1; i < num_threads; ++i) workers_.emplace_back([this] { WorkerLoop(); });
}

ThreadPool::~ThreadPool() {
  state_.fetch_or(kClosing);
  state_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::ParallelFor(int64_t count, absl::FunctionRef<void(int64_t)> body) {
  if (workers_.empty() || count <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  body_ = &body;
  count_ = count;
  next_.store(0, std::memory_order_relaxed);
  const uint32_t number = (state_.load(std::memory_order_relaxed) >> kNumberShift) + 1;
  state_.store((number << kNumberShift) | kOpen, std::memory_order_release);
  state_.notify_all();
  RunShare();
  uint32_t state = state_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
  while ((state & kParticipants) != 0) state = AwaitChange(state);
}

void ThreadPool::RunShare() {
  while (true) {
    const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
    if (i >= count_) return;
    (*body_)(i);
  }
}

void ThreadPool::WorkerLoop() {
  uint32_t done = 0;
  uint32_t state = state_.load(std::memory_order_acquire);
  while ((state & kClosing) == 0) {
    if ((state & kOpen) == 0 || (state >> kNumberShift) == done) {
      state = AwaitChange(state);
      continue;
    }
    if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) continue;
    done = state >> kNumberShift;
    RunShare();
    state = state_.fetch_sub(1, std::memory_order_acq_rel) - 1;
    if ((state & (kOpen | kParticipants)) == 0) state_.notify_all();
  }
}

uint32_t ThreadPool::AwaitChange(uint32_t seen) const {
  for (int i = 0; i < kSpins; ++i) {
    const uint32_t now = state_.load(std::memory_order_acquire);
    if (now != seen) return now;
    _mm_pause();
  }
  state_.wait(seen, std::memory_order_acquire);
  return state_.load(std::memory_order_acquire);
}

}  // namespace polyreme::backend
