// The ranks of the cluster as the coordinator sees them: who came, what they run, how far they are.
// No network here.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"

namespace polyreme::engine {

// What a rank says of itself when it joins.
struct PeerIdentity {
  int32_t rank = -1;
  int32_t world_size = 0;
  std::string host;
  int64_t pid = 0;
  std::string build_id;
  std::string settings;  // "name=value" lines
  std::string checkpoint;
  std::string device;  // "host/bus id"; empty: one that may be shared
};

// Where a rank's memory has gone; as proto's Ready.
struct PeerMemory {
  int64_t weight_bytes = 0;
  int64_t kv_bytes = 0;
  int64_t step_bytes = 0;
  int64_t communicator_bytes = 0;
  int64_t recording_bytes = 0;
  int64_t free_bytes = 0;
  int32_t num_recorded = 0;
  double recording_seconds = 0;
  // All that the rank was to take of its device, from sizes alone, and all that it took.
  int64_t predicted_bytes = 0;
  int64_t used_bytes = 0;
  int64_t predicted_weight_bytes = 0;
};

// Thread-safe: streams report, the coordinator's main waits.
class Peers {
 public:
  enum class Phase { kAbsent, kJoined, kAttached, kLoaded, kReady };

  struct Peer {
    PeerIdentity identity;
    Phase phase = Phase::kAbsent;
    int64_t ticket = 0;  // of the process that joined last
    int64_t bytes_done = 0;
    int64_t bytes_total = 0;
    int64_t kv_bytes_per_block = 0;
    int64_t kv_bytes_budget = 0;
    int32_t num_blocks_held = 0;  // of the cache pool it has from an epoch before; 0: none
    PeerMemory memory;            // of weights alone until the rank is ready
  };

  // expected: what every rank must be like; its rank and host are the coordinator's.
  // allow_shared_device: several ranks may be on one. incarnation: of the coordinator; no two share
  // a ticket.
  explicit Peers(PeerIdentity expected, bool allow_shared_device = false, int64_t incarnation = 1);

  // Whether the rank may take part. An error is kept as the cluster's failure: one wrong rank ends
  // the launch, named by rank and host. Once all have served, it is not kept, and a rank that
  // joined and never attached gives way to the next that comes.
  // The ticket to attach with.
  absl::StatusOr<int64_t> Join(const PeerIdentity& peer);
  // FailedPrecondition when the rank has not joined, or has attached already, or when the ticket is
  // that of a process which gave way: its stream may come after its end.
  absl::Status Attach(int32_t rank, int64_t ticket);
  void SetProgress(int32_t rank, int64_t bytes_done, int64_t bytes_total);
  void SetLoaded(int32_t rank, int64_t weight_bytes, int64_t kv_bytes_per_block,
                 int64_t kv_bytes_budget, int32_t num_blocks_held = 0);
  void SetReady(int32_t rank, const PeerMemory& memory);
  // The first failure stays and ends all waits.
  void Fail(absl::Status why);

  // The epoch is lost: ends all waits until NextEpoch. The first reason stays. False: none had
  // served yet, and nothing was done.
  bool Lose(const absl::Status& why);
  // All ranks have been ready: from now on what is lost can come back.
  void SetServed();
  bool has_served() const;
  // Whether the rank has come to kLoaded in this epoch, which counts on it from then on.
  bool HasLoaded(int32_t rank) const;
  // A rank's process is gone; another may join in its place.
  void SetAbsent(int32_t rank);
  // Waits until the rank's former process is gone; at most until `deadline`.
  void WaitUntilAbsent(int32_t rank, absl::Time deadline) const;
  // Forgets the loss: every rank that is there must come to kLoaded again, with SetEpochEnded.
  void NextEpoch();
  void SetEpochEnded(int32_t rank);
  // Of this epoch, or for good.
  absl::Status loss() const;

  // Waits until every rank is at least at `phase`, or something failed, or `deadline`; the
  // DeadlineExceeded names the ranks that are not.
  absl::Status WaitFor(Phase phase, absl::Time deadline) const;
  absl::Status failure() const;
  std::vector<Peer> snapshot() const;
  // "rank 2 (host b, pid 4711)"
  std::string NameOf(int32_t rank) const;

 private:
  absl::Status Check(const PeerIdentity& peer) const;  // caller holds mutex_
  bool AllAt(Phase phase) const;                       // caller holds mutex_

  const PeerIdentity expected_;
  const bool allow_shared_device_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::vector<Peer> peers_;  // guarded by mutex_
  int64_t last_ticket_;      // guarded by mutex_
  absl::Status failure_;     // guarded by mutex_; for good
  absl::Status loss_;        // guarded by mutex_; of this epoch
  bool has_served_ = false;  // guarded by mutex_
};

}  // namespace polyreme::engine
