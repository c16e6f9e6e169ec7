#include "tests/worker/count_allocations.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<bool> counting{false};
std::atomic<int64_t> num_allocations{0};
}  // namespace

// Replaces the one of the library for the whole binary.
void* operator new(std::size_t bytes) {
  if (counting.load(std::memory_order_relaxed)) {
    num_allocations.fetch_add(1, std::memory_order_relaxed);
  }
  void* const data = std::malloc(bytes == 0 ? 1 : bytes);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}
void operator delete(void* data) noexcept {
  std::free(data);
}
void operator delete(void* data, std::size_t) noexcept {
  std::free(data);
}

namespace polyreme {

void StartCountingAllocations() {
  num_allocations = 0;
  counting = true;
}

int64_t StopCountingAllocations() {
  counting = false;
  return num_allocations;
}

}  // namespace polyreme
