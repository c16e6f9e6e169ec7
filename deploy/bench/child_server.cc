#include "deploy/bench/child_server.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <utility>

#include "deploy/bench/http_client.h"
#include "deploy/bench/interrupt.h"

namespace polyreme::bench {
namespace {

constexpr size_t kLastWords = 4 << 10;
constexpr int kLookMs = 50;  // at Interrupted() and the child, at least so often

// Runs in the child between fork and exec: only async-signal-safe calls.
[[noreturn]] void BecomeServer(const char* program, char* const* argv, pid_t parent, int output) {
  setpgid(0, 0);
  // Not SIGKILL: the agent is to end its workers.
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(1);
  const int null = open("/dev/null", O_RDONLY);
  dup2(null, STDIN_FILENO);
  dup2(output, STDOUT_FILENO);
  dup2(output, STDERR_FILENO);
  execv(program, argv);
  _exit(127);
}

std::string HowItEnded(int status) {
  if (WIFSIGNALED(status)) return fmt::format("was killed by signal {}", WTERMSIG(status));
  return fmt::format("ended with exit code {}", WEXITSTATUS(status));
}

// The last lines of a log, without what is cut at the beginning.
std::string LastLines(const std::string& text, int count) {
  size_t at = text.size();
  while (at > 0 && text[at - 1] == '\n') --at;
  const size_t end = at;
  for (int line = 0; line < count && at != 0 && at != std::string::npos; ++line) {
    const size_t newline = text.rfind('\n', at - 1);
    at = newline == std::string::npos ? 0 : newline;
  }
  return text.substr(at == 0 ? 0 : at + 1, end - (at == 0 ? 0 : at + 1));
}

// The parent of each process of this machine.
std::map<pid_t, pid_t> Parents() {
  std::map<pid_t, pid_t> parents;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const pid_t pid = static_cast<pid_t>(std::atoi(entry.path().filename().c_str()));
    if (pid == 0) continue;
    std::ifstream file(entry.path() / "stat");
    std::string text;
    std::getline(file, text);
    const size_t end = text.rfind(')');
    char state = 0;
    pid_t parent = 0;
    if (end != std::string::npos && std::istringstream(text.substr(end + 1)) >> state >> parent) {
      parents[pid] = parent;
    }
  }
  return parents;
}

int64_t PeakResidentOf(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/status", pid));
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("VmHWM:")) return std::atoll(line.c_str() + 6) << 10;
  }
  return 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChildServer>> ChildServer::Start(const ChildServerOptions& options) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return Unavailable("no pipe: {}", std::strerror(errno));
  std::unique_ptr<ChildServer> server(new ChildServer());
  server->options_ = options;
  server->output_ = ends[0];
  server->log_ = open(options.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (server->log_ < 0) {
    close(ends[1]);
    return FailedPrecondition("{} cannot be written: {}", options.log_path, std::strerror(errno));
  }
  std::vector<std::string> arguments = {"polyreme", "serve"};
  arguments.insert(arguments.end(), options.arguments.begin(), options.arguments.end());
  arguments.insert(arguments.end(), {"--port", "0"});
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  server->started_ns_ = NowNanos();
  server->pid_ = fork();
  if (server->pid_ == 0) BecomeServer(options.program.c_str(), argv.data(), parent, ends[1]);
  close(ends[1]);
  if (server->pid_ < 0) return Unavailable("cannot start the server: {}", std::strerror(errno));
  RETURN_IF_ERROR(server->AwaitReady());
  server->drain_ = std::thread([s = server.get()] { s->Drain(); });
  return server;
}

absl::Status ChildServer::AwaitReady() {
  constexpr std::string_view kReady = "ready: serving ";
  constexpr std::string_view kAddress = " at http://";
  const int64_t deadline = started_ns_ + absl::ToInt64Nanoseconds(options_.ready_patience);
  std::string line;
  char buffer[4096];
  for (;;) {
    if (Interrupted()) return Cancelled("interrupted while the server was starting");
    if (NowNanos() > deadline) {
      return DeadlineExceeded("the server was not ready within {}; its last words:\n{}",
                              absl::FormatDuration(options_.ready_patience),
                              LastLines(last_words_, 8));
    }
    pollfd ready = {.fd = output_, .events = POLLIN, .revents = 0};
    if (poll(&ready, 1, kLookMs) != 1) continue;
    const ssize_t count = read(output_, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      int status = 0;
      waitpid(pid_, &status, 0);
      pid_ = -1;
      return Unavailable("the server {} before it was ready; its last words:\n{}",
                         HowItEnded(status), LastLines(last_words_, 8));
    }
    const int64_t now = NowNanos();
    const std::string_view part(buffer, static_cast<size_t>(count));
    if (write(log_, part.data(), part.size()) < 0) close(std::exchange(log_, -1));
    last_words_ += part;
    if (last_words_.size() > kLastWords) last_words_.erase(0, last_words_.size() - kLastWords);
    line += part;
    for (size_t end = line.find('\n'); end != std::string::npos; end = line.find('\n')) {
      const std::string whole = line.substr(0, end);
      line.erase(0, end + 1);
      const size_t at = whole.find(kAddress);
      if (whole.find(kReady) == std::string::npos || at == std::string::npos) continue;
      const size_t begin = at + 4;
      url_ = whole.substr(begin, whole.find_first_of(" ,", begin) - begin);
      ready_ns_ = now;
      return absl::OkStatus();
    }
  }
}

void ChildServer::Drain() {
  char buffer[4096];
  for (;;) {
    const ssize_t count = read(output_, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;
    if (write(log_, buffer, static_cast<size_t>(count)) < 0) return;
  }
}

absl::Status ChildServer::Stop() {
  if (pid_ > 0) {
    const pid_t pid = std::exchange(pid_, -1);
    kill(pid, SIGTERM);
    const int64_t deadline = NowNanos() + absl::ToInt64Nanoseconds(options_.stop_patience);
    int status = 0;
    bool killed = false;
    // A pidfd would wait without looking again and again; a few looks a second cost nothing here.
    while (waitpid(pid, &status, WNOHANG) == 0) {
      if (NowNanos() > deadline && !killed) {
        killed = true;
        kill(-pid, SIGKILL);
      }
      poll(nullptr, 0, 10);
    }
    if (killed) {
      end_ = DeadlineExceeded("the server did not end and was killed");
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
      end_ = Unavailable("the server {}", HowItEnded(status));
    }
  }
  if (drain_.joinable()) drain_.join();
  return end_;
}

ChildServer::~ChildServer() {
  Stop().IgnoreError();
  if (output_ >= 0) close(output_);
  if (log_ >= 0) close(log_);
}

int64_t ChildServer::PeakResidentBytes() const {
  if (pid_ <= 0) return 0;
  const std::map<pid_t, pid_t> parents = Parents();
  int64_t bytes = 0;
  for (const auto& [pid, parent] : parents) {
    pid_t ancestor = pid;
    for (int depth = 0; depth < 16 && ancestor > 1 && ancestor != pid_; ++depth) {
      const auto found = parents.find(ancestor);
      ancestor = found == parents.end() ? 0 : found->second;
    }
    if (ancestor == pid_) bytes += PeakResidentOf(pid);
  }
  return bytes;
}

}  // namespace polyreme::bench
