// Preloaded into a program under test: makes one of its threads hang, for good, where it asks what
// time it is. All other threads go on.
//
//   POLYREME_TEST_HANG_THREAD  the thread's name
//   POLYREME_TEST_HANG_FILE    once this file is there, the next such thread removes it and hangs

#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

namespace {

bool HangsNow() {
  static const char* const thread = std::getenv("POLYREME_TEST_HANG_THREAD");
  static const char* const file = std::getenv("POLYREME_TEST_HANG_FILE");
  if (thread == nullptr || file == nullptr) return false;
  char name[16] = {};
  return prctl(PR_GET_NAME, name) == 0 && std::strcmp(name, thread) == 0 && unlink(file) == 0;
}

}  // namespace

extern "C" int clock_gettime(clockid_t clock, timespec* time) noexcept {
  while (HangsNow()) {
    for (;;) pause();
  }
  return static_cast<int>(syscall(SYS_clock_gettime, clock, time));
}
