#include "tests/coordinator/api/failing_allocation.h"

#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace polyreme::api {
namespace {

std::atomic<bool> armed{false};
std::atomic<int64_t> countdown{0};
std::atomic<bool> has_struck{false};
pthread_t spared_thread;

bool IsToFail() {
  if (!armed.load() || pthread_equal(pthread_self(), spared_thread) != 0) return false;
  if (countdown.fetch_sub(1) != 0) return false;
  has_struck = true;
  return true;
}

}  // namespace

void SpareThisThread() {
  spared_thread = pthread_self();
}

void FailAllocation(int64_t n) {
  countdown = n;
  has_struck = false;
  armed = true;
}

bool FailNoAllocation() {
  armed = false;
  return has_struck.load();
}

void* Allocate(size_t size) {
  void* const memory = IsToFail() ? nullptr : std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
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
