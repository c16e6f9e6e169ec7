#include "deploy/bench/progress.h"

#include <unistd.h>

#include <cstdio>

#include "deploy/bench/http_client.h"

namespace polyreme::bench {
namespace {

constexpr int64_t kWithoutTerminalNs = 15'000'000'000;

}  // namespace

ProgressLine::ProgressLine() : is_terminal_(isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() {
  if (is_open_) std::fputs("\r\033[K", stderr);
}

void ProgressLine::Show(const std::string& text) {
  const int64_t now = NowNanos();
  if (is_terminal_) {
    std::fprintf(stderr, "\r%.150s\033[K", text.c_str());
    is_open_ = true;
  } else if (now - shown_ns_ >= kWithoutTerminalNs) {
    std::fprintf(stderr, "%s\n", text.c_str());
    shown_ns_ = now;
  }
}

}  // namespace polyreme::bench
