#include "deploy/bench/interrupt.h"

#include <signal.h>

#include <atomic>

namespace polyreme::bench {
namespace {

std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "set by a signal handler");

// SA_RESETHAND: the next one has its usual effect.
void SetHandler(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

}  // namespace

InterruptGuard::InterruptGuard() {
  interrupted = false;
  SetHandler([](int) { interrupted = true; });
}

InterruptGuard::~InterruptGuard() {
  SetHandler(SIG_DFL);
}

bool Interrupted() {
  return interrupted;
}

}  // namespace polyreme::bench
