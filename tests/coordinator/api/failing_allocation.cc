#include "tests/coordinator/api/failing_allocation.h"

#include <execinfo.h>
#include <pthread.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <new>

#include "parallel/base/out_of_memory.h"

namespace polyreme::api {
namespace {

constexpr size_t kMaxSpared = 16;

std::atomic<bool> armed{false};
std::atomic<Threads> threads_to_fail{Threads::kAll};
std::atomic<int64_t> countdown{0};
std::atomic<int64_t> count_to_fail{0};
std::atomic<bool> has_struck{false};
std::array<std::atomic<pthread_t>, kMaxSpared> spared_threads{};
std::array<void*, 32> frames{};
std::atomic<int> num_frames{0};

bool IsSpared() {
  const pthread_t self = pthread_self();
  for (const std::atomic<pthread_t>& spared : spared_threads) {
    if (spared.load() == self) return true;
  }
  return false;
}

bool IsToFail() {
  if (!armed.load() || IsSpared()) return false;
  if (threads_to_fail.load() == Threads::kOnReserve && !MemoryReserve::Access::may_draw()) {
    return false;
  }
  const int64_t left = countdown.fetch_sub(1);
  if (left > 0 || left <= -count_to_fail.load()) return false;
  num_frames = backtrace(frames.data(), static_cast<int>(frames.size()));
  has_struck = true;
  return true;
}

void* Allocate(size_t size) {
  while (true) {
    if (!IsToFail()) {
      if (void* const memory = std::malloc(size == 0 ? 1 : size)) return memory;
    }
    const std::new_handler handler = std::get_new_handler();
    if (handler == nullptr) throw std::bad_alloc();
    handler();
  }
}

}  // namespace

SparedThread::SparedThread() : is_outermost_(!IsSpared()) {
  if (!is_outermost_) return;
  for (; place_ < kMaxSpared; ++place_) {
    pthread_t nobody{};
    if (spared_threads[place_].compare_exchange_strong(nobody, pthread_self())) return;
  }
  CHECK(false, "too many threads are spared");
}

SparedThread::~SparedThread() {
  if (is_outermost_) spared_threads[place_] = pthread_t{};
}

void FailAllocation(int64_t n, int64_t count, Threads threads) {
  threads_to_fail = threads;
  countdown = n;
  count_to_fail = count;
  has_struck = false;
  armed = true;
}

bool FailNoAllocation() {
  armed = false;
  return has_struck.load();
}

void PrintWhereItFailed() {
  backtrace_symbols_fd(frames.data(), num_frames, STDERR_FILENO);
}

}  // namespace polyreme::api

void* operator new(size_t size) {
  return polyreme::api::Allocate(size);
}
void* operator new[](size_t size) {
  return polyreme::api::Allocate(size);
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, size_t) noexcept {
  std::free(memory);
}
