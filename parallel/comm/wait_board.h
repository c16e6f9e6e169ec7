// What the thread that communicates waits for of other ranks, for another thread to see: who it
// waits for, and whether anything has come or gone meanwhile. While it computes it says nothing.
//
// On a GPU what waits is the device, and the board stays empty.
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

  // One thread, here and below: it has to wait for this rank, and others perhaps.
  void WaitFor(int32_t peer) { state_.store(peer, std::memory_order_release); }
  // Bytes have moved, or the wait is over.
  void Moved() {
    changes_.fetch_add(1, std::memory_order_relaxed);
    state_.store(kWorks, std::memory_order_release);
  }

 private:
  static constexpr int64_t kWorks = -1;

  std::atomic<int64_t> changes_{0};
  std::atomic<int64_t> state_{kWorks};  // or the rank
};

}  // namespace polyreme::comm
