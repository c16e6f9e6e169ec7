#include "tests/coordinator/allocation_count.h"

#include <cstdlib>
#include <new>
#include <utility>

namespace polyreme {
namespace {

AllocationCount count;

}  // namespace

AllocationCount TakeAllocationCount() { return std::exchange(count, {}); }

}  // namespace polyreme

void* operator new(size_t size) {
  ++polyreme::count.allocations;
  polyreme::count.bytes += static_cast<int64_t>(size);
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
