// An operator new that fails when a test says so, and then does what the standard says: it calls
// the new-handler and tries again, or throws.
#pragma once

#include <cstddef>
#include <cstdint>

namespace polyreme::api {

// While it lives, allocations of the calling thread are not counted and do not fail: it is the
// test's, or plays a process that is not under test. They nest on one thread.
class SparedThread {
 public:
  SparedThread();
  ~SparedThread();
  SparedThread(const SparedThread&) = delete;
  SparedThread& operator=(const SparedThread&) = delete;

 private:
  const bool is_outermost_;
  size_t place_ = 0;
};

enum class Threads : uint8_t { kAll, kOnReserve };

// After the next `n` allocations of all other threads, or of those that may draw on the memory
// reserve, `count` fail.
void FailAllocation(int64_t n, int64_t count = 1, Threads threads = Threads::kAll);
// None fails any more. Whether one has.
bool FailNoAllocation();
// Where the last one failed: return addresses of the program, for addr2line.
void PrintWhereItFailed();

}  // namespace polyreme::api
