// Counts what operator new gives out, in a test binary of its own.
#pragma once

#include <cstdint>

namespace polyreme {

struct AllocationCount {
  int64_t allocations = 0;
  int64_t bytes = 0;
};
// Since the last call. One thread.
AllocationCount TakeAllocationCount();

}  // namespace polyreme
