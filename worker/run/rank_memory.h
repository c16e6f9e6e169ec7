// All that a rank takes of its device, part by part, known before any of it is there: from sizes
// and settings alone. A worker takes its memory by these numbers and says so beside what it took;
// whoever plans a launch gets the same ones without weights or a device.
#pragma once

#include <cstdint>

#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/plan/model_spec.h"
#include "parallel/plan/shard_plan.h"
#include "parallel/step/step_plan.h"
#include "worker/backend/backend.h"
#include "worker/kv/kv_cache.h"
#include "worker/run/step_memory.h"
#include "worker/weights/shard_loader.h"

namespace polyreme::run {

// What it follows from. Borrows the plan.
struct RankSetup {
  const plan::ModelSpec* spec = nullptr;
  const plan::ShardPlan* plan = nullptr;
  Rank rank;
  step::StepLimits limits;  // num_blocks is not asked for
  backend::DeviceKind device;
  DType kv_dtype = DType::kF32;
  int64_t head_chunk_samples = 64;

  const plan::Shard& shard() const { return plan->ShardOf(rank); }
};

// Of the cache that a rank holds.
kv::KvLayout KvLayoutOf(const RankSetup& setup);

struct RankMemory {
  weights::WeightBytes weights;
  StepMemory step;
  int64_t kv_bytes_per_block = 0;
  // One sequence of the full context, the least that can serve.
  int64_t sequence_bytes = 0;
  // Of a GPU, and allowed for rather than counted: at most.
  int64_t communicator_bytes = 0;
  int64_t recording_bytes = 0;
  int64_t context_bytes = 0;  // of the process: CUDA's context, code, libraries
  bool gpu = false;

  // With a cache of so many blocks. On CPU what is pinned on a GPU comes from the same memory.
  int64_t TotalBytes(int64_t num_blocks) const {
    return weights.total() + step.device_bytes() + (gpu ? 0 : step.host_bytes) +
           num_blocks * kv_bytes_per_block + communicator_bytes + recording_bytes + context_bytes;
  }
};
RankMemory RankMemoryOf(const RankSetup& setup);

// The share of a device that has nothing but this rank's weights yet: what CacheBudget is asked of
// a device that is not there.
CacheShare EmptyDeviceShare(const RankSetup& setup, const RankMemory& memory, int64_t device_bytes,
                            double utilization);

}  // namespace polyreme::run
