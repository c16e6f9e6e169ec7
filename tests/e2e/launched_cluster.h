// The real binary, started as a user would, and watched from outside.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/json.h"
#include "parallel/base/status.h"

namespace polyreme::e2e {

inline constexpr char kDemoModel[] = POLYREME_SOURCE_DIR "/deploy/demo-model";

// One started program with everything it writes, in a process group of its own. Ends it (by pid)
// when it goes.
class Program {
 public:
  using Environment = std::vector<std::pair<std::string, std::string>>;
  // arguments[0] is looked up in PATH.
  static std::unique_ptr<Program> Start(const std::vector<std::string>& arguments,
                                        const Environment& environment = {});
  ~Program();

  pid_t pid() const { return pid_; }
  std::string output() const;
  // How often `text` stands in the output.
  int Count(const std::string& text) const;
  // The rest of the first line that contains `text`, after it; nullopt at the deadline or when the
  // program has ended without it.
  std::optional<std::string> WaitForLine(const std::string& text, absl::Duration patience);
  // The exit code, 128 + signal, or nullopt while it runs.
  std::optional<int> WaitForExit(absl::Duration patience);
  void Signal(int signal);
  // Pids of all processes below this one whose command line contains `text`.
  std::vector<pid_t> Descendants(const std::string& text) const;

 private:
  Program() = default;
  pid_t pid_ = -1;
  int pipe_ = -1;
  std::thread reader_;
  mutable std::mutex mutex_;
  std::string output_;                 // guarded by mutex_
  std::atomic<bool> is_read_ = false;  // to the end of the pipe
  std::optional<int> exit_;
};

// A serving cluster and its HTTP port.
struct Cluster {
  std::unique_ptr<Program> program;
  int32_t port = 0;

  // The parsed answer to a POST; fails the test on anything but `code`.
  Json Post(const std::string& path, const Json& body, int32_t code = 200) const;
  std::string Get(const std::string& path, int32_t code = 200) const;
  // SIGTERM, then the exit code; -1 if it does not end.
  int Stop();
};

// launcher: empty (alone) or {"mpirun", "-np", "4"}. arguments: after `serve MODEL`; --port 0 is
// added. Fails the test with the program's output when it does not get ready.
Cluster StartCluster(const std::vector<std::string>& launcher,
                     const std::vector<std::string>& arguments,
                     const std::string& model = kDemoModel,
                     const Program::Environment& environment = {});
// mpirun for `ranks` ranks on this host, also as root and on few cores.
std::vector<std::string> Mpirun(int ranks);

// Pids of all processes of this machine whose command line contains `text`, but for this one.
std::vector<pid_t> ProcessesWith(const std::string& text);
// Whether a process exists and is not a zombie.
bool IsAlive(pid_t pid);
// The living worker of a rank, waited for if it is being replaced; fails the test without one.
pid_t WorkerOf(const Program& program, int rank);
// Sends SIGKILL or SIGSTOP and waits until it has had its effect: the process is gone, or in state
// T. Fails the test otherwise.
void Strike(pid_t pid, int signal);
// Waits until none of `pids` is alive; the first that still is.
std::optional<pid_t> FirstAlive(const std::vector<pid_t>& pids, absl::Duration patience);
// A TCP port that nobody listens on now.
int32_t FreePort();
// Waits for something that has no file descriptor: looks every few milliseconds.
bool WaitUntil(absl::Duration patience, const std::function<bool()>& condition);

// A directory for one test's temporary files, and what of ours is in it and in /dev/shm.
class Traces {
 public:
  Traces();
  ~Traces();
  // For the programs whose traces are looked for.
  Program::Environment environment() const { return {{"TMPDIR", directory_}}; }
  const std::string& directory() const { return directory_; }
  // What is there and was not at the beginning, once it does not go away any more.
  std::vector<std::string> Left() const;

 private:
  std::string directory_;
  std::set<std::string> shared_memory_;  // entries of /dev/shm at the beginning
};

}  // namespace polyreme::e2e
