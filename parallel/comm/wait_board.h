// What a thread waits for of other ranks, for another thread to see: who it waits for, and whether
// anything has come or gone meanwhile. A thread that computes says nothing.
//
// Transports write to the board of the thread that they run on, if it has one. On a GPU what waits
// is the device, and boards stay empty.
#pragma once

#include <atomic>
#include <cstdint>

namespace polyreme::comm {

class WaitBoard {
 public:
  struct View {
    bool waits = false;
    int32_t peer = -1;    // a rank of the cluster that is waited for
    int64_t changes = 0;  // differs if anything has moved since another view
  };
  // Any thread.
  View Read() const {
    const int64_t state = state_.load(std::memory_order_acquire);
    return {state >= 0, static_cast<int32_t>(state), changes_.load(std::memory_order_relaxed)};
  }

  // While it lives, the calling thread writes to this board.
  class OfThisThread {
   public:
    explicit OfThisThread(WaitBoard& board) { mine_ = &board; }
    ~OfThisThread() { mine_ = nullptr; }
    OfThisThread(const OfThisThread&) = delete;
    OfThisThread& operator=(const OfThisThread&) = delete;
  };

  // The calling thread has to wait for this rank, and others perhaps.
  static void WaitFor(int32_t peer) {
    if (mine_ != nullptr) mine_->state_.store(peer, std::memory_order_release);
  }
  // Bytes have moved, or the wait is over.
  static void Moved() {
    if (mine_ == nullptr) return;
    mine_->changes_.fetch_add(1, std::memory_order_relaxed);
    mine_->state_.store(kWorks, std::memory_order_release);
  }

 private:
  static constexpr int64_t kWorks = -1;

  static thread_local WaitBoard* mine_;

  std::atomic<int64_t> changes_{0};
  std::atomic<int64_t> state_{kWorks};  // or the rank
};

}  // namespace polyreme::comm
