#include "parallel/launch/agent.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <utility>

#include "parallel/base/clock.h"
#include "parallel/base/log.h"
#include "parallel/launch/heart.h"

namespace polyreme::launch {
namespace {

// Signals that come closer together than this are one wish, sent twice.
constexpr absl::Duration kOneWish = absl::Milliseconds(200);
constexpr absl::Duration kLook = absl::Milliseconds(200);  // at children's beats, at least so often

struct Child {
  const ChildSpec* spec = nullptr;
  pid_t pid = -1;
  bool running = false;
  int heart = -1;  // its beats are read here; -1: it has none
  HeartMonitor monitor;
};

// Runs in the child between fork and exec: only async-signal-safe calls.
[[noreturn]] void BecomeChild(char* const* argv, char* const* envp, pid_t agent, int heart) {
  if (heart >= 0) fcntl(heart, F_SETFD, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != agent) _exit(1);  // the agent died before the line above took effect
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  execve("/proc/self/exe", argv, envp);
  _exit(127);
}

// `heart`: the pipe's end that the child inherits, or -1. `note`: of the process before it.
absl::StatusOr<pid_t> Spawn(const ChildSpec& spec, int heart, const std::string& note) {
  std::vector<std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) variables.emplace_back(*entry);
  std::vector<std::pair<std::string, std::string>> added = spec.environment;
  if (heart >= 0) added.emplace_back(kHeartVariable, std::to_string(heart));
  if (!note.empty()) added.emplace_back(kNoteVariable, note);
  for (const auto& [name, value] : added) {
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
  if (pid == 0) BecomeChild(argv.data(), envp.data(), agent, heart);
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
      children_.emplace_back().spec = &spec;
      if (absl::Status s = StartChild(children_.back()); !s.ok()) {
        SignalAll(SIGKILL);
        return s;
      }
    }
    return absl::OkStatus();
  }

  absl::Status Run() {
    while (AnyRunning()) {
      WaitForSignal();
      ReadBeats();
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
  absl::Status StartChild(Child& child) {
    int ends[2] = {-1, -1};
    if (child.spec->replaceable && pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
      return Unavailable("cannot make a pipe for {}: {}", child.spec->title, std::strerror(errno));
    }
    absl::StatusOr<pid_t> pid = Spawn(*child.spec, ends[1], child.monitor.note());
    if (ends[1] >= 0) close(ends[1]);
    if (child.heart >= 0) close(child.heart);
    child.heart = ends[0];
    child.monitor.Reset(MonotonicNow());
    RETURN_IF_ERROR(pid.status());
    child.pid = *pid;
    child.running = true;
    return absl::OkStatus();
  }

  // What the children have said; who has said nothing for too long is killed, and reaped as any
  // other. Time in which this process did not run is nobody's silence.
  void ReadBeats() {
    const absl::Time now = MonotonicNow();
    const absl::Duration lost = now - looked_ - 2 * kLook;
    looked_ = now;
    for (Child& child : children_) {
      if (!child.running || child.heart < 0) continue;
      if (lost > absl::ZeroDuration()) child.monitor.Forgive(lost);
      ReadBeatsOf(child, now);
      if (!child.monitor.IsSilent(now)) continue;
      LogError("{} (pid {}) hangs: it has given no sign for {}; killing it", child.spec->title,
               child.pid, absl::FormatDuration(child.monitor.silence(now)));
      kill(child.pid, SIGKILL);
      child.monitor.Reset(now);
    }
  }

  static void ReadBeatsOf(Child& child, absl::Time now) {
    char bytes[4096];
    for (ssize_t n = 0; (n = read(child.heart, bytes, sizeof(bytes))) > 0;) {
      child.monitor.Take({bytes, static_cast<size_t>(n)}, now);
    }
  }

  // Whether another process took the child's place.
  bool Replace(Child& child, int status, const absl::Status& verdict) {
    // What it has said just before its end counts: the note is in it.
    if (child.heart >= 0) ReadBeatsOf(child, MonotonicNow());
    const bool may = child.spec->replaceable && child.monitor.has_served() && !any_ended_ &&
                     kill_at_ == absl::InfiniteFuture() &&
                     (WIFSIGNALED(status) || WEXITSTATUS(status) == kReplaceMe);
    if (!may || options_.max_restarts == 0) return false;
    const absl::Time now = MonotonicNow();
    while (!restarts_.empty() && now - restarts_.front() > options_.restart_window) {
      restarts_.pop_front();
    }
    if (std::ssize(restarts_) >= options_.max_restarts) {
      LogError("{} restarts within {} are as many as may be (--max-restarts)", restarts_.size(),
               absl::FormatDuration(options_.restart_window));
      return false;
    }
    restarts_.push_back(now);
    if (absl::Status s = StartChild(child); !s.ok()) {
      LogError("{}", Message(s));
      return false;
    }
    LogWarning("{}; started again as pid {}", Message(verdict), child.pid);
    return true;
  }

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
    const absl::Duration left = std::min(kill_at_ - MonotonicNow(), kLook);
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
      const absl::Status verdict = Verdict(child, status);
      if (!verdict.ok() && Replace(child, status, verdict)) continue;
      if (verdict_.ok()) {
        verdict_ = verdict;
        if (!verdict_.ok()) LogError("{}; ending the launch", Message(verdict_));
      }
      if (!std::exchange(any_ended_, true)) options_.on_first_end();
      // On a busy machine an orderly end takes its time, and must not become a failure.
      kill_at_ = std::min(kill_at_, MonotonicNow() + (verdict_.ok() ? options_.orderly_patience
                                                                    : options_.end_patience));
    }
  }

  const AgentOptions options_;
  const int signals_;
  std::vector<Child> children_;
  bool stopping_ = false;
  absl::Time stopping_since_;
  bool any_ended_ = false;
  absl::Time kill_at_ = absl::InfiniteFuture();
  absl::Time looked_ = MonotonicNow();
  std::deque<absl::Time> restarts_;
  absl::Status verdict_;
};

}  // namespace

absl::Status RunAgent(const std::vector<ChildSpec>& children, const AgentOptions& options) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : kEndSignals) sigaddset(&set, signal);
  sigaddset(&set, SIGCHLD);
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
