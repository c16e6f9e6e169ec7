// For a plugin that carries its own copy of this module: it takes over the program's clock and
// name, so that their times compare and their log lines look alike.
#pragma once

#include <chrono>
#include <string>

#include "absl/time/time.h"

namespace polyreme {

// One moment on both clocks, from which MonotonicNow counts.
struct ClockAnchor {
  absl::Time wall;
  std::chrono::steady_clock::time_point steady;
};
ClockAnchor GetClockAnchor();
// Before anything in this copy asks for the time.
void AdoptClockAnchor(const ClockAnchor& anchor);

// What SetLogName has set.
const std::string& GetLogName();

}  // namespace polyreme
