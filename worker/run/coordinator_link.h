// A worker's way to the coordinator, whichever process that is: dials in, dials in again when it is
// lost, and remembers what keeps an old one out.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "worker/run/cluster_client.h"

namespace polyreme::run {

// DialIn, Admit and NoteEpoch are for the thread that reads orders; the rest for any.
class CoordinatorLink {
 public:
  CoordinatorLink(std::string address, std::string job_token, JoinInfo identity);

  // Joins and attaches over a connection of its own; what has been said with TellLoaded is said
  // again. The client before it has been closed by the caller and is used no more. As
  // ClusterClient::Join; under kPersistently a coordinator that is lost meanwhile is waited for,
  // until `deadline`.
  enum class Effort { kOnce, kPersistently };
  absl::Status DialIn(absl::Time deadline, Effort effort);
  // Of the last DialIn that succeeded. Hold it no longer than a call takes.
  std::shared_ptr<ClusterClient> client() const;
  int64_t incarnation() const { return identity_.known_incarnation; }

  // Loading has ended so: told to the coordinator, now and to each that takes its place.
  // `num_blocks_held` is asked each time.
  void TellLoaded(absl::StatusOr<LoadedReport> loaded, std::function<int32_t()> num_blocks_held);
  // Whether loading has succeeded and the coordinator was told.
  bool has_loaded() const;

  // Whether an epoch may start: FailedPrecondition unless it is above every one that was heard of.
  absl::Status Admit(Epoch epoch);
  void NoteEpoch(Epoch epoch);

 private:
  void SayLoaded();  // mutex_ is held

  const std::string address_;
  const std::string job_token_;
  JoinInfo identity_;  // with what is known of coordinators
  mutable std::mutex mutex_;
  std::shared_ptr<ClusterClient> client_;               // guarded by mutex_
  std::optional<absl::StatusOr<LoadedReport>> loaded_;  // guarded by mutex_
  std::function<int32_t()> num_blocks_held_;            // guarded by mutex_
};

}  // namespace polyreme::run
