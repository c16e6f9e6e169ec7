// One worker's life: join, load its shard, meet its group, take steps until it is told to stop.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/comm/process_group.h"
#include "parallel/plan/shard_plan.h"
#include "parallel/plan/topology.h"
#include "parallel/step/step_plan.h"
#include "worker/backend/backend.h"
#include "worker/run/cluster_client.h"

namespace polyreme::run {

struct WorkerOptions {
  std::string model_directory;
  plan::Topology topology;
  plan::PlanOptions plan;
  step::StepLimits limits;  // num_blocks comes with the start order
  std::string backend = "cpu";
  backend::BackendOptions backend_options;
  int64_t kv_bytes_budget = 0;  // 0: a quarter of what is free, shared by the host's ranks
  int32_t ranks_on_host = 1;
  comm::ProcessGroup::Kind transport = comm::ProcessGroup::Kind::kAuto;
  std::string listen_address = "127.0.0.1";
  std::string host_identity;  // empty: the machine's own
  std::string coordinator;    // host:port
  std::string job_token;
  JoinInfo identity;  // rank, host, pid, build, settings; the checkpoint's fingerprint is filled in
  absl::Duration join_timeout = absl::Seconds(120);
};

// Blocks for the worker's whole life. ok: stopped in order. Otherwise why it ended, which the
// coordinator has been told where it could be.
absl::Status RunWorker(WorkerOptions options);

}  // namespace polyreme::run
