// One I/O thread, and what other threads give it to do.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <cstddef>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <utility>

#include "absl/time/time.h"
#include "coordinator/api/errand.h"

namespace polyreme::api {

class Connection;

// Memory for one handler of Asio, taken beforehand: it is free again before the handler is called.
class HandlerMemory {
 public:
  void* Take(size_t num_bytes) {
    CHECK(!is_taken_ && num_bytes <= bytes_.size(), "a handler of {} bytes", num_bytes);
    is_taken_ = true;
    return bytes_.data();
  }
  void GiveBack() { is_taken_ = false; }

 private:
  alignas(std::max_align_t) std::array<std::byte, 256> bytes_;
  bool is_taken_ = false;
};

// What Asio asks of an allocator.
template <class T>
struct HandlerAllocator {
  using value_type = T;
  explicit HandlerAllocator(HandlerMemory* where) : memory(where) {}
  template <class U>
  explicit(false) HandlerAllocator(const HandlerAllocator<U>& other) : memory(other.memory) {}
  T* allocate(size_t count) { return static_cast<T*>(memory->Take(count * sizeof(T))); }
  void deallocate(T*, size_t) { memory->GiveBack(); }
  template <class U>
  bool operator==(const HandlerAllocator<U>& other) const {
    return memory == other.memory;
  }
  HandlerMemory* memory;
};

// `work` as a handler that lies in `memory`.
template <class Work>
class HandlerIn {
 public:
  using allocator_type = HandlerAllocator<char>;
  HandlerIn(HandlerMemory& memory, Work work) : memory_(&memory), work_(std::move(work)) {}
  allocator_type get_allocator() const { return allocator_type(memory_); }
  template <class... Args>
  void operator()(Args&&... args) {
    work_(std::forward<Args>(args)...);
  }

 private:
  HandlerMemory* memory_;
  Work work_;
};

// Outlives its connections, which share it; errands given after End are dropped.
class Loop {
 public:
  Loop();

  // Runs it on the loop's thread, behind those given before. Any thread.
  void Give(std::shared_ptr<Errand> errand) noexcept;
  void Run();
  // Run returns once what is queued and outstanding is done.
  void End();
  // For how long the thread has not come round to what it was asked here: once a second, whether it
  // comes round. For one thread, before End.
  absl::Duration Stillness();

  boost::asio::io_context& context() { return context_; }
  std::unordered_set<Connection*>& connections() { return connections_; }

 private:
  void RunErrands();

  HandlerMemory wake_memory_;
  boost::asio::io_context context_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> guard_;
  std::unordered_set<Connection*> connections_;  // touched on the loop's thread only
  std::mutex mutex_;
  ErrandQueue errands_;    // guarded by mutex_, and so on
  bool is_woken_ = false;  // RunErrands is on its way
  bool ended_ = false;
  // Of Stillness, without the lock.
  std::atomic<bool> is_asked_ = false;          // and has not come round to it
  absl::Time asked_at_ = absl::InfinitePast();  // touched on the asking thread only
  const std::shared_ptr<Errand> question_;
};

}  // namespace polyreme::api
