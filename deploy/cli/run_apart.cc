#include "deploy/cli/run_apart.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "parallel/base/clock.h"

namespace polyreme::cli {
namespace {

// One byte of the code, then the message. Cut where the pipe would block.
[[noreturn]] void Answer(const std::function<absl::Status()>& body, int to) {
  const absl::Status status = body();
  std::string text(1, static_cast<char>(status.code()));
  text += Message(status).substr(0, PIPE_BUF - 1);
  _exit(write(to, text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0 : 1);
}

// All that comes until the other end is closed; false when time runs out.
bool ReadAll(int from, absl::Time deadline, std::string& text) {
  for (;;) {
    const absl::Duration left = deadline - MonotonicNow();
    if (left <= absl::ZeroDuration()) return false;
    pollfd ready = {.fd = from, .events = POLLIN, .revents = 0};
    const auto wait = static_cast<int>(std::max<int64_t>(1, absl::ToInt64Milliseconds(left)));
    const int polled = poll(&ready, 1, wait);
    if (polled < 0 && errno != EINTR) return false;
    if (polled <= 0) continue;
    char buffer[PIPE_BUF];
    const ssize_t count = read(from, buffer, sizeof(buffer));
    if (count == 0) return true;
    if (count > 0) text.append(buffer, static_cast<size_t>(count));
    if (count < 0 && errno != EINTR) return false;
  }
}

}  // namespace

absl::Status RunApart(const std::function<absl::Status()>& body, absl::Duration patience) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return Unavailable("pipe: {}", std::strerror(errno));
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    close(ends[0]);
    Answer(body, ends[1]);
  }
  const int fork_error = errno;
  close(ends[1]);
  std::string text;
  const bool answered = child > 0 && ReadAll(ends[0], MonotonicNow() + patience, text);
  close(ends[0]);
  if (child < 0) return Unavailable("fork: {}", std::strerror(fork_error));
  if (!answered) kill(child, SIGKILL);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
  if (!answered) return DeadlineExceeded("no answer within {}", absl::FormatDuration(patience));
  if (text.empty()) {
    return Internal("no answer: the process that asked {} {}",
                    WIFSIGNALED(status) ? "was killed by signal" : "ended with exit code",
                    WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
  }
  return MakeStatus(static_cast<absl::StatusCode>(text[0]), text.substr(1));
}

}  // namespace polyreme::cli
