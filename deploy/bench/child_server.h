// `polyreme serve` as a child of a bench, from exec to its end.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

struct ChildServerOptions {
  std::string program = "/proc/self/exe";
  std::vector<std::string> arguments;  // behind `serve`; --port 0 is added
  std::string log_path;                // what it prints, appended
  absl::Duration ready_patience = absl::Minutes(30);
  absl::Duration stop_patience = absl::Seconds(45);  // from SIGTERM to SIGKILL
};

// In a process group of its own, so that Ctrl-C reaches only the bench, which then ends it; told
// to end by the kernel, should the bench die.
class ChildServer {
 public:
  // Returns when it is ready. Unavailable with its last words if it ends before that or takes too
  // long, Cancelled on Interrupted().
  static absl::StatusOr<std::unique_ptr<ChildServer>> Start(const ChildServerOptions& options);
  ~ChildServer();  // as Stop
  ChildServer(const ChildServer&) = delete;
  ChildServer& operator=(const ChildServer&) = delete;

  // Ends it and waits; ok if it ended as it should. Idempotent.
  absl::Status Stop();

  pid_t pid() const { return pid_; }
  const std::string& url() const { return url_; }
  // NowNanos() just before exec, and when the ready line was read.
  int64_t started_ns() const { return started_ns_; }
  int64_t ready_ns() const { return ready_ns_; }
  // The most bytes of memory that its processes have had resident, added up. 0 once it has ended.
  int64_t PeakResidentBytes() const;

 private:
  ChildServer() = default;
  absl::Status AwaitReady();
  void Drain();

  ChildServerOptions options_;
  pid_t pid_ = -1;
  int output_ = -1;  // the pipe that it prints into
  int log_ = -1;
  std::string last_words_;
  std::string url_;
  int64_t started_ns_ = 0;
  int64_t ready_ns_ = 0;
  std::thread drain_;  // copies what it prints into the log
  absl::Status end_;
};

}  // namespace polyreme::bench
