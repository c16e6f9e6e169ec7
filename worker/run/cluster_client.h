// A worker's side of the cluster's wire: joining, the meeting, and its one stream of orders and
// answers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <variant>

#include "absl/time/time.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/launch/rendezvous.h"
#include "parallel/step/step_plan.h"

namespace polyreme::run {

// What this rank is and runs; the coordinator compares it with its own.
struct JoinInfo {
  Rank rank;
  int32_t world_size = 1;
  std::string host;
  int64_t pid = 0;
  std::string build_id;
  std::string settings;
  std::string checkpoint;
  std::string device;  // "host/bus id": no other rank may have it; empty: one that may be shared
  // Of the coordinator this process was with before, if any.
  Epoch known_epoch;              // the highest it has heard of
  int64_t known_incarnation = 0;  // of that coordinator
};

// The coordinator that was joined.
struct JoinedCluster {
  Epoch epoch;              // that runs there now
  int64_t incarnation = 1;  // it was started so many times
  int64_t ticket = 0;       // to attach with
};

struct MemoryReport {
  int64_t weight_bytes = 0;
  int64_t kv_bytes = 0;
  int64_t step_bytes = 0;
  int64_t communicator_bytes = 0;
  int64_t recording_bytes = 0;
  int64_t free_bytes = 0;
  int32_t num_recorded = 0;
  absl::Duration recording_time;
  // All in all: before anything was taken, from sizes alone, and as the device says.
  int64_t predicted_bytes = 0;
  int64_t used_bytes = 0;
  int64_t predicted_weight_bytes = 0;
};

struct LoadedReport {
  int64_t weight_bytes = 0;
  int64_t kv_bytes_per_block = 0;
  int64_t kv_bytes_budget = 0;
  int32_t num_blocks_held = 0;  // of the pool from an epoch before; 0: none yet
};

// What the coordinator says.
struct StartOrder {
  Epoch epoch;
  int32_t num_blocks = 0;
};
struct StopOrder {
  absl::Status why;  // ok: in order
};
// The epoch is lost; ended with SendEpochEnded.
struct EndEpochOrder {
  Epoch epoch;
  absl::Status why;
};
// All ranks of the epoch are ready.
struct ServingOrder {
  Epoch epoch;
};
using Order = std::variant<StartOrder, step::StepPlan, StopOrder, EndEpochOrder, ServingOrder>;

// Read is for one thread, everything else for any.
class ClusterClient final : public launch::Rendezvous {
 public:
  ClusterClient(const std::string& address, std::string job_token);
  ~ClusterClient() override;

  // Waits for the listener and joins. The coordinator's refusal as it is; Unavailable when nobody
  // listens until `deadline`; Unauthenticated when what listens does not know the job token.
  absl::StatusOr<JoinedCluster> Join(const JoinInfo& info, absl::Time deadline);
  // `ticket`: as Join gave it. A refusal is the end of the stream: Read tells.
  absl::Status Attach(Rank rank, int64_t ticket);

  absl::Status Put(std::string_view key, std::string value) override;
  absl::StatusOr<std::string> Wait(std::string_view key, absl::Time deadline) override;

  // The next order. Blocks while there is none: the stream's own keep-alive bounds the wait.
  // Unavailable once it has ended, and only then.
  absl::StatusOr<Order> Read();
  // Ends every Put and Wait, now and later, with Cancelled: this coordinator is gone, and another
  // may listen at its address.
  void Close();

  // Unavailable once the stream has ended.
  absl::Status SendProgress(int64_t bytes_done, int64_t bytes_total);
  absl::Status SendLoaded(const LoadedReport& report);
  absl::Status SendReady(Epoch epoch, const MemoryReport& memory);
  absl::Status SendResult(const step::StepResult& result);
  // epoch 0: outside any.
  absl::Status SendFailed(Epoch epoch, const absl::Status& why);
  absl::Status SendEpochEnded(Epoch epoch);
  // Waits for `peer`, and nothing has moved for `waited`.
  absl::Status SendStanding(Epoch epoch, int32_t peer, absl::Duration waited);
  // Says that nothing more will be sent, and waits briefly for the stream to end.
  void Finish();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace polyreme::run
