// Counters behind CommStats: written by the thread that communicates, read by any.
#pragma once

#include <atomic>

#include "parallel/comm/communicator.h"

namespace polyreme::comm {

class StatCounters {
 public:
  void CountOperation() { Add(operations_, 1); }
  void CountSent(size_t bytes) { Add(sent_, static_cast<int64_t>(bytes)); }
  void CountReceived(size_t bytes) { Add(received_, static_cast<int64_t>(bytes)); }
  void CountWaiting(absl::Duration time) { Add(waiting_ns_, absl::ToInt64Nanoseconds(time)); }

  CommStats Read() const {
    CommStats stats;
    stats.operations = operations_.load(std::memory_order_relaxed);
    stats.bytes_sent = sent_.load(std::memory_order_relaxed);
    stats.bytes_received = received_.load(std::memory_order_relaxed);
    stats.waiting = absl::Nanoseconds(waiting_ns_.load(std::memory_order_relaxed));
    return stats;
  }

 private:
  static void Add(std::atomic<int64_t>& counter, int64_t n) {
    counter.store(counter.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }

  std::atomic<int64_t> operations_{0};
  std::atomic<int64_t> sent_{0};
  std::atomic<int64_t> received_{0};
  std::atomic<int64_t> waiting_ns_{0};
};

}  // namespace polyreme::comm
