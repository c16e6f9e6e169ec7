// How often this binary takes memory from the heap, on any thread, while it is asked to count.
#pragma once

#include <cstdint>

namespace polyreme {

void StartCountingAllocations();
// Since the last start.
int64_t StopCountingAllocations();

}  // namespace polyreme
