// Who has joined, and the way to them: the cluster's listener, the meeting, and one stream per
// worker.
//
// Workers dial in and prove the job token; the coordinator compares what each of them runs (binary,
// settings, checkpoint) with its own before anything is loaded, and names the host and rank that
// differs.
//
// A worker that is lost once all have served costs the epoch, not the launch: those that are left
// are told to end it, the one that takes the lost one's place joins, and all meet in the next
// epoch. What still comes from an old one is ignored.
//
// A coordinator that takes the place of a lost one (incarnation > 1) is such a loss as well: the
// workers dial in again with weights and cache pool, and say which epochs they have known; the
// first of this incarnation is above them all (docs/decisions/0011-coordinator-restart.md).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/engine/peers.h"
#include "coordinator/engine/worker_link.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/plan/topology.h"

namespace polyreme::engine {

struct ClusterOptions {
  plan::Topology topology;
  std::string listen_address = "127.0.0.1";
  int32_t port = 0;  // 0: any free one
  std::string job_token;
  std::string build_id;    // of this executable
  std::string settings;    // "name=value" lines all ranks must share
  std::string checkpoint;  // fingerprint
  absl::Duration join_timeout = absl::Seconds(120);
  Epoch epoch{1};           // the first, or above it if a worker has known a higher one
  int64_t incarnation = 1;  // of the coordinator; above 1 all have served before
  // Losses before this incarnation; the one that made it necessary is not among them.
  std::vector<absl::Time> losses;
  // Called before anybody is told of an epoch, with the losses that count so far.
  std::function<void(Epoch, const std::vector<absl::Time>&)> on_epoch =
      [](Epoch, const std::vector<absl::Time>&) {};
  int32_t max_restarts = 3;  // epochs lost within restart_window; the next loss is final
  absl::Duration restart_window = absl::Minutes(10);
  int32_t num_blocks = 0;            // cache blocks by hand; 0: from the ranks' memory
  int32_t num_blocks_max = 0;        // more are never needed
  int32_t num_blocks_min = 1;        // fewer cannot serve one sequence
  bool allow_shared_device = false;  // several ranks may compute on one
};

// What one rank holds, for the ready line.
struct RankReport {
  Rank rank;
  std::string host;
  int64_t pid = 0;
  PeerMemory memory;
};

class Cluster {
 public:
  // Opens the listener. Unavailable: the address is taken or not ours.
  static absl::StatusOr<std::unique_ptr<Cluster>> Listen(const ClusterOptions& options);
  ~Cluster();

  std::string address() const;  // "127.0.0.1:41234"

  // Waits until all ranks have joined, loaded their weights and met in their process group; logs
  // progress. Errors name ranks and hosts: DeadlineExceeded for those that did not come within the
  // join timeout, FailedPrecondition for one that differs, AlreadyExists for a rank that came
  // twice, Unavailable for one that was lost. With incarnation > 1 a loss meanwhile is one more
  // recovery, as it is when serving.
  absl::Status WaitUntilReady();

  // Ends WaitUntilReady and every Await with `why`. Any thread.
  void Cancel(absl::Status why);

  // Why the cluster has ended, or ok: an idle engine awaits nothing and would not notice a lost
  // worker.
  absl::Status failure() const;

  int32_t num_blocks() const;  // after WaitUntilReady
  Epoch epoch() const;         // the one that runs, or is being prepared
  std::vector<RankReport> reports() const;
  WorkerLink& link();

  // Tells all workers to end (ok: in order; otherwise with the reason) and waits for their streams
  // to close until `deadline`.
  void Stop(const absl::Status& why, absl::Time deadline);

 private:
  class Impl;
  explicit Cluster(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace polyreme::engine
