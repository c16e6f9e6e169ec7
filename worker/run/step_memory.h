// What a runner takes besides weights and cache, known before any of it is there: from a model's
// sizes, the part of it held here and the limits of a step. The runner takes its memory by these
// numbers, and so can whoever plans a launch.
#pragma once

#include <cstdint>

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

}  // namespace polyreme::run
