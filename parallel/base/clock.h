// Time as an argument. Only this module asks the system what time it is, so that the coordinator
// can run in virtual time.
#pragma once

#include <chrono>

#include "absl/time/time.h"

namespace polyreme {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
};

// Wall-clock time at process start plus monotonic time since: never jumps, so deadlines are safe.
absl::Time MonotonicNow();

// The steady time point that equals `time` on MonotonicNow's scale, for std waits.
std::chrono::steady_clock::time_point ToSteady(absl::Time time);

// The real clock; stateless.
class SystemClock final : public Clock {
 public:
  absl::Time Now() const override { return MonotonicNow(); }
};

}  // namespace polyreme
