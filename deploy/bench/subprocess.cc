#include "deploy/bench/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "deploy/bench/http_client.h"

namespace polyreme::bench {
namespace {

constexpr size_t kMaxOutputBytes = size_t{16} << 20;

// Runs in the child between fork and exec: only async-signal-safe calls.
[[noreturn]] void BecomeProgram(const char* program, char* const* argv, int output, bool errors) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const int null = open("/dev/null", O_RDWR);
  dup2(null, STDIN_FILENO);
  dup2(output, STDOUT_FILENO);
  if (!errors) dup2(null, STDERR_FILENO);
  execvp(program, argv);
  _exit(127);
}

}  // namespace

absl::StatusOr<std::string> OutputOf(const std::string& program,
                                     const std::vector<std::string>& arguments,
                                     absl::Duration patience, bool shows_errors) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return Unavailable("no pipe: {}", std::strerror(errno));
  std::vector<std::string> all = {program};
  all.insert(all.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& argument : all) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const pid_t pid = fork();
  if (pid == 0) BecomeProgram(program.c_str(), argv.data(), ends[1], shows_errors);
  close(ends[1]);
  if (pid < 0) {
    close(ends[0]);
    return Unavailable("cannot start {}: {}", program, std::strerror(errno));
  }
  const int64_t deadline = NowNanos() + absl::ToInt64Nanoseconds(patience);
  std::string output;
  bool late = false;
  for (;;) {
    const int64_t left_ms = (deadline - NowNanos()) / 1'000'000;
    pollfd ready = {.fd = ends[0], .events = POLLIN, .revents = 0};
    const int events = poll(&ready, 1, static_cast<int>(std::max<int64_t>(left_ms, 0)));
    if (events < 0 && errno == EINTR) continue;
    late = events <= 0 || output.size() > kMaxOutputBytes;
    if (late) break;
    char buffer[4096];
    const ssize_t count = read(ends[0], buffer, sizeof(buffer));
    if (count <= 0) break;
    output.append(buffer, static_cast<size_t>(count));
  }
  close(ends[0]);
  if (late) kill(pid, SIGKILL);
  int status = 0;
  waitpid(pid, &status, 0);
  if (late) {
    return DeadlineExceeded("{} did not end within {}", program, absl::FormatDuration(patience));
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return Unavailable("{} ended with {}", program,
                       WIFEXITED(status) ? fmt::format("exit code {}", WEXITSTATUS(status))
                                         : fmt::format("signal {}", WTERMSIG(status)));
  }
  return output;
}

}  // namespace polyreme::bench
