// An operator new that fails when a test says so.
#pragma once

#include <cstdint>

namespace polyreme::api {

// Allocations of the calling thread, the test's, are not counted and do not fail.
void SpareThisThread();
// The allocation after the next `n` of all other threads fails, once.
void FailAllocation(int64_t n);
// None fails any more. Whether one has.
bool FailNoAllocation();

}  // namespace polyreme::api
