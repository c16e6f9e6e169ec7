#include "parallel/base/out_of_memory.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace polyreme {
namespace {

const absl::Status& out_of_memory =
    *new absl::Status(Unavailable("the server is out of memory; try again later"));

std::atomic<void*> reserve{nullptr};
// The handler of a failed allocation is told nothing but by the thread it runs on.
thread_local bool may_draw_on_reserve = false;

// Called by operator new when there is no memory; it tries again when this returns.
void OnFailedAllocation() {
  void* const held = may_draw_on_reserve ? reserve.exchange(nullptr) : nullptr;
  if (held == nullptr) throw std::bad_alloc();
  std::free(held);
}

}  // namespace

const absl::Status& OutOfMemory() {
  return out_of_memory;
}

bool MemoryReserve::Hold(size_t num_bytes) noexcept {
  if (held()) return true;
  void* const memory = std::malloc(num_bytes);
  if (memory == nullptr) return false;
  // Untouched pages are only promised.
  std::memset(memory, 1, num_bytes);
  std::set_new_handler(&OnFailedAllocation);
  void* none = nullptr;
  if (!reserve.compare_exchange_strong(none, memory)) std::free(memory);
  return true;
}

bool MemoryReserve::held() noexcept {
  return reserve.load() != nullptr;
}

MemoryReserve::Access::Access(bool may_draw) noexcept
    : before_(std::exchange(may_draw_on_reserve, may_draw)) {}

MemoryReserve::Access::~Access() {
  may_draw_on_reserve = before_;
}

bool MemoryReserve::Access::may_draw() noexcept {
  return may_draw_on_reserve;
}

}  // namespace polyreme
