// What a runner takes besides weights and cache, known before any of it is there: from a model's
// sizes, the part of it held here and the limits of a step. The runner takes its memory by these
// numbers, and so can whoever plans a launch.
#pragma once

#include <cstdint>

#include "parallel/base/status.h"
#include "parallel/plan/model_spec.h"
#include "parallel/plan/shard_plan.h"
#include "parallel/step/step_plan.h"
#include "parallel/tensor/tensor.h"
#include "worker/ops/ops.h"

namespace polyreme::run {

// What the sizes follow from.
struct StepShape {
  plan::ModelSpec spec;
  plan::Shard shard;
  int32_t shards = 1;  // of the tensor group
  step::StepLimits limits;
  DType activations = DType::kF32;
  DType kv_dtype = DType::kF32;
  int64_t head_chunk_samples = 64;  // at most: model::ModelOptions

  // Never more than a step has.
  int64_t HeadChunk() const;
};

// Bytes. All but host_bytes are of the device.
struct StepMemory {
  int64_t arena_bytes = 0;      // scratch of the lane
  int64_t input_bytes = 0;      // StepInputs
  int64_t sampler_bytes = 0;    // SamplerMemory: the table of penalties, for the most part
  int64_t feedback_bytes = 0;   // FeedbackMemory
  int64_t workspace_bytes = 0;  // of the ops
  int64_t host_bytes = 0;       // Device::AllocateHost
  int64_t device_bytes() const {
    return arena_bytes + input_bytes + sampler_bytes + feedback_bytes + workspace_bytes;
  }
};

// The largest step, without the products' weights.
ops::Workload WorkloadOf(const StepShape& shape);
// workspace_bytes: ops::Ops::WorkspaceBytes(WorkloadOf(shape)).
StepMemory StepMemoryOf(const StepShape& shape, int64_t workspace_bytes);

// How much of a device's memory one rank may give to its cache, once its weights are there.
struct CacheShare {
  int64_t total_bytes = 0;  // of the device
  int64_t free_bytes = 0;   // now
  int64_t weight_bytes = 0;
  StepMemory step;
  double utilization = 0;       // the part of the whole that this cluster may use
  int32_t ranks_on_device = 1;  // more than one divide it evenly
  int32_t world_size = 1;
  // Of the cache: one sequence of the full context, which is the least that can serve.
  int64_t sequence_bytes = 0;
  int32_t max_model_len = 0;  // for the message
};
// What a rank on a GPU allows for beside weights, step and cache.
struct DeviceReserves {
  int64_t communicator_bytes = 0;
  int64_t recording_bytes = 0;
  int64_t process_bytes = 0;  // already taken when weights are there, unless a device is shared
};
DeviceReserves ReservesOf(int32_t world_size);

// Where the device's memory goes; the cache may have `left_bytes`, which may be too little for one
// sequence, or negative.
struct CacheDivision {
  int64_t allowed_bytes = 0;  // to this rank, all in all
  int64_t used_bytes = 0;     // by weights, context and others
  int64_t reserve_bytes = 0;  // communicators and recordings, still to come
  int64_t left_bytes = 0;
};
CacheDivision DivideDevice(const CacheShare& share);
// What is left after all that is still to come: the step's memory, communicators, recordings.
// ResourceExhausted says by how much it is too little and what to change.
absl::StatusOr<int64_t> CacheBudget(const CacheShare& share);

}  // namespace polyreme::run
