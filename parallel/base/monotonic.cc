#include "parallel/base/monotonic.h"

#include <chrono>

#include "parallel/base/process_identity.h"

namespace polyreme {
namespace {

int64_t Nanos(std::chrono::steady_clock::time_point time) {
  return std::chrono::nanoseconds(time.time_since_epoch()).count();
}

}  // namespace

int64_t MonotonicNanos() {
  return Nanos(std::chrono::steady_clock::now());
}

int64_t MonotonicWallOffset() {
  const ClockAnchor anchor = GetClockAnchor();
  return absl::ToUnixNanos(anchor.wall) - Nanos(anchor.steady);
}

}  // namespace polyreme
