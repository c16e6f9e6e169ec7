// One worker's life: join, load its shard, meet its group, take steps until it is told to stop.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/time/time.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/comm/process_group.h"
#include "parallel/plan/shard_plan.h"
#include "parallel/plan/topology.h"
#include "parallel/step/step_plan.h"
#include "parallel/trace/flight_ring.h"
#include "worker/backend/backend.h"
#include "worker/run/cluster_client.h"
#include "worker/run/load_watch.h"
#include "worker/weights/tensor_source.h"

namespace polyreme::run {

struct WorkerOptions {
  std::string model_directory;
  weights::LoadFormat load_format = weights::LoadFormat::kSafetensors;
  uint64_t seed = 0;  // of a dummy model
  plan::Topology topology;
  plan::PlanOptions plan;
  step::StepLimits limits;  // num_blocks comes with the start order, unless it is given by hand
  int64_t head_chunk_samples = 64;  // ModelRunner::Options
  std::string backend = "cpu";
  backend::BackendOptions backend_options;
  // Of the cache; 0: by memory_utilization.
  int64_t kv_bytes_budget = 0;
  // The part of the device's memory that this cluster may use, for a device of its own; 0: the
  // cache gets a quarter of what is free, shared by the host's ranks.
  double memory_utilization = 0;
  int32_t ranks_on_host = 1;
  int32_t ranks_on_device = 1;
  // Unless the backend makes communicators itself.
  comm::ProcessGroup::Kind transport = comm::ProcessGroup::Kind::kAuto;
  std::string listen_address = "127.0.0.1";
  std::string host_identity;  // empty: the machine's own
  std::string coordinator;    // host:port
  std::string job_token;
  // Rank, host, pid, build, settings, device; the checkpoint's fingerprint is filled in.
  JoinInfo identity;
  absl::Duration join_timeout = absl::Seconds(120);
  // For another coordinator to take the place of one that is lost once all have served; zero: a
  // lost coordinator ends the worker.
  absl::Duration rejoin_timeout = absl::Seconds(30);
  bool takes_over = false;  // another process of this rank was lost: all have served before
  // Called when all ranks of an epoch are ready: from here on a process that is lost is replaced.
  std::function<void()> on_serving = [] {};
  // Of the loading; null: nobody asks. Borrowed.
  LoadWatch* load_watch = nullptr;
  // Of steps and collectives; null: none. Borrowed.
  trace::FlightRing* recorder = nullptr;
  // Called when this epoch is known to be lost and before another begins.
  std::function<void(const absl::Status& why)> on_epoch_lost = [](const absl::Status&) {};
};

// Blocks for the worker's whole life, which a coordinator's death does not end: the group is ended,
// weights and cache pool are kept, and the next coordinator at the address is joined.
// ok: stopped in order. Otherwise why it ended, which the
// coordinator has been told where it could be; what the worker held is then left to the end of the
// process, which should be at once and by _exit: a device may still wait for a peer that is gone.
// Aborted: it could not leave a lost epoch, and another process should take its place.
absl::Status RunWorker(WorkerOptions options);

}  // namespace polyreme::run
