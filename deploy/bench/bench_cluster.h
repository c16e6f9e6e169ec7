// What the benches of whole steps have in common: which model, how it is laid out over ranks, and
// the roofline of that.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "deploy/bench/ceilings.h"
#include "deploy/bench/rank_threads.h"
#include "deploy/bench/roofline.h"
#include "parallel/base/status.h"
#include "parallel/plan/model_spec.h"
#include "parallel/step/step_plan.h"
#include "worker/backend/backend.h"
#include "worker/weights/tensor_source.h"

namespace polyreme::bench {

inline constexpr int32_t kTokensPerBlock = 16;

struct ClusterOptions {
  std::string model;  // a checkpoint's directory; of a dummy model its config.json's
  weights::LoadFormat format = weights::LoadFormat::kSafetensors;
  uint64_t seed = 0;  // of a dummy model
  std::string device = "cpu";
  backend::BackendOptions backend;
  Layout layout;
  int32_t num_threads = 1;             // of each rank
  int32_t max_num_batched_tokens = 0;  // of a step; 0: 8192 on a GPU, 512 on CPU

  bool on_gpu() const { return device == "cuda"; }
  int32_t step_tokens() const {
    if (max_num_batched_tokens > 0) return max_num_batched_tokens;
    return on_gpu() ? 8192 : 512;
  }
};

// The model's sizes, the machine's rates and what follows from both. Measures, so that the memory
// has to be free.
struct ClusterFacts {
  plan::ModelSpec spec;
  Ceilings ceilings;
  Roofline roofline;
  std::string title;  // the ceilings' description, and a line that says what is measured
};
absl::StatusOr<ClusterFacts> GatherFacts(const ClusterOptions& options);
// The same with ceilings that were measured already, by another process on this machine.
absl::StatusOr<ClusterFacts> FactsWith(const ClusterOptions& options, Ceilings ceilings);

// Of a rank, by rank.
struct BenchDevice {
  backend::DeviceKind kind;
  int64_t bytes = 0;
};

// Workers that are ready for steps as `limits` allow.
absl::StatusOr<std::unique_ptr<RankThreads>> StartRanks(const ClusterOptions& options,
                                                        const step::StepLimits& limits);
// Cache blocks that every rank has room for, at most `wanted`: what a worker of those limits would
// leave to its cache on a device of that size that has nothing else on it (run/rank_memory), at
// --gpu-memory-utilization 0.92. ResourceExhausted if one request does not fit.
absl::StatusOr<int32_t> BlocksThatFit(const ClusterOptions& options, const plan::ModelSpec& spec,
                                      const step::StepLimits& limits,
                                      const std::vector<BenchDevice>& devices, int32_t wanted);
// The same on the GPUs that are here. On CPU `wanted`.
absl::StatusOr<int32_t> NumBlocksThatFit(const ClusterOptions& options, const plan::ModelSpec& spec,
                                         const step::StepLimits& limits, int32_t wanted);

// "12.3": a share in percent of what was at best possible.
double SharePercent(double seconds_at_best, double seconds);

}  // namespace polyreme::bench
