// Ctrl-C, as a wish to stop that long work looks at.
#pragma once

namespace polyreme::bench {

// While one lives, the first SIGINT or SIGTERM only sets interrupted(); the second ends the process
// as ever. One at a time.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
};

// Whether one has come. Any thread.
bool Interrupted();

inline constexpr int kInterruptedExit = 130;

}  // namespace polyreme::bench
