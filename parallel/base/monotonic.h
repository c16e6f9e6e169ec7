// The host's monotonic clock as a plain number, for records that are written often and compared
// between processes of one host.
#pragma once

#include <cstdint>

namespace polyreme {

// Nanoseconds of the host's monotonic clock. MonotonicNow() is this plus MonotonicWallOffset().
int64_t MonotonicNanos();
// What makes of it nanoseconds since 1970; a constant of the process.
int64_t MonotonicWallOffset();

}  // namespace polyreme
