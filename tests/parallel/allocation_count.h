// Counts the allocations of a test binary, by replacing its operator new.
#pragma once

#include <cstdint>

namespace polyreme {

// Of all threads since the start.
int64_t NumAllocations();

}  // namespace polyreme
