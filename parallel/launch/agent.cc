#include "parallel/launch/agent.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "parallel/base/clock.h"
#include "parallel/base/log.h"

namespace polyreme::launch {
namespace {

// Signals that come closer together than this are one wish, sent twice.
constexpr absl::Duration kOneWish = absl::Milliseconds(200);

struct Child {
  const ChildSpec* spec;
  pid_t pid = -1;
  bool running = false;
};

// Runs in the child between fork and exec: only async-signal-safe calls.
[[noreturn]] void BecomeChild(char* const* argv, char* const* envp, pid_t agent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != agent) _exit(1);  // the agent died before the line above took effect
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  execve("/proc/self/exe", argv, envp);
  _exit(127);
}

absl::StatusOr<pid_t> Spawn(const ChildSpec& spec) {
  std::vector<std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) variables.emplace_back(*entry);
  for (const auto& [name, value] : spec.environment) {
    std::erase_if(variables,
                  [&name = name](const std::string& v) { return v.starts_with(name + "="); });
    variables.push_back(name + "=" + value);
  }
  const auto pointers = [](const std::vector<std::string>& strings) {
    std::vector<char*> out;
    for (const std::string& s : strings) out.push_back(const_cast<char*>(s.c_str()));
    out.push_back(nullptr);
    return out;
  };
  const std::vector<char*> argv = pointers(spec.arguments);
  const std::vector<char*> envp = pointers(variables);
  const pid_t agent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return Unavailable("cannot start {}: {}", spec.title, std::strerror(errno));
  if (pid == 0) BecomeChild(argv.data(), envp.data(), agent);
  return pid;
}

absl::Status Verdict(const Child& child, int status) {
  const std::string who = fmt::format("{} (pid {})", child.spec->title, child.pid);
  if (WIFSIGNALED(status)) {
    return Unavailable("{} was killed by signal {} ({})", who, WTERMSIG(status),
                       strsignal(WTERMSIG(status)));
  }
  if (WEXITSTATUS(status) == 0) return absl::OkStatus();
  return Unavailable("{} ended with exit code {}", who, WEXITSTATUS(status));
}

class Supervisor {
 public:
  Supervisor(const AgentOptions& options, int signals) : options_(options), signals_(signals) {}

  absl::Status Start(const std::vector<ChildSpec>& specs) {
    for (const ChildSpec& spec : specs) {
      absl::StatusOr<pid_t> pid = Spawn(spec);
      if (!pid.ok()) {
        SignalAll(SIGKILL);
        return pid.status();
      }
      children_.push_back(Child{&spec, *pid, true});
    }
    return absl::OkStatus();
  }

  absl::Status Run() {
    while (AnyRunning()) {
      WaitForSignal();
      Reap();
      if (options_.launcher != 0 && getppid() != options_.launcher) OnLauncherGone();
      if (MonotonicNow() >= kill_at_) {
        SignalAll(SIGKILL);
        kill_at_ = absl::InfiniteFuture();
      }
    }
    return verdict_;
  }

 private:
  bool AnyRunning() const {
    return std::any_of(children_.begin(), children_.end(),
                       [](const Child& c) { return c.running; });
  }

  void SignalAll(int signal) {
    for (const Child& child : children_) {
      if (child.running) kill(child.pid, signal);
    }
  }

  void WaitForSignal() {
    pollfd entry{signals_, POLLIN, 0};
    const absl::Duration left = std::min(kill_at_ - MonotonicNow(), absl::Seconds(1));
    const int timeout_ms = std::max(0, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
    if (poll(&entry, 1, timeout_ms) <= 0) return;
    signalfd_siginfo info{};
    if (read(signals_, &info, sizeof(info)) != sizeof(info)) return;
    if (info.ssi_signo != static_cast<uint32_t>(SIGCHLD)) OnStopSignal();
  }

  void OnStopSignal() {
    if (stopping_) {
      // A supervisor that signals a group, and this process in it, means it once.
      if (MonotonicNow() - stopping_since_ < kOneWish) return;
      LogWarning("second signal: ending at once");
      if (verdict_.ok()) verdict_ = Cancelled("stopped by a second signal");
      SignalAll(SIGKILL);
      return;
    }
    stopping_ = true;
    stopping_since_ = MonotonicNow();
    kill_at_ = std::min(kill_at_, MonotonicNow() + options_.drain_patience);
    for (const Child& child : children_) {
      if (child.running && child.spec->drains) kill(child.pid, SIGTERM);
    }
  }

  void OnLauncherGone() {
    // Before a word is said: nobody may be left to read it.
    SignalAll(SIGKILL);
    if (verdict_.ok()) verdict_ = Cancelled("the launcher (pid {}) is gone", options_.launcher);
  }

  void Reap() {
    for (Child& child : children_) {
      if (!child.running) continue;
      int status = 0;
      if (waitpid(child.pid, &status, WNOHANG) != child.pid) continue;
      child.running = false;
      if (verdict_.ok()) {
        verdict_ = Verdict(child, status);
        if (!verdict_.ok()) LogError("{}; ending the launch", Message(verdict_));
      }
      if (!std::exchange(any_ended_, true)) options_.on_first_end();
      kill_at_ = std::min(kill_at_, MonotonicNow() + options_.end_patience);
    }
  }

  const AgentOptions options_;
  const int signals_;
  std::vector<Child> children_;
  bool stopping_ = false;
  absl::Time stopping_since_;
  bool any_ended_ = false;
  absl::Time kill_at_ = absl::InfiniteFuture();
  absl::Status verdict_;
};

}  // namespace

absl::Status RunAgent(const std::vector<ChildSpec>& children, const AgentOptions& options) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGCHLD}) sigaddset(&set, signal);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  const int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  if (signals < 0) return Unavailable("signalfd: {}", std::strerror(errno));
  Supervisor supervisor(options, signals);
  absl::Status status = supervisor.Start(children);
  if (status.ok()) status = supervisor.Run();
  close(signals);
  return status;
}

}  // namespace polyreme::launch
