// What a launch takes of its devices, rank by rank, and whether it fits: worked out by the code
// that workers allocate by (worker/run/rank_memory.h) and the rules by which the coordinator
// chooses its cache. Pure; milliseconds.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "deploy/sizing/gpus.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/plan/model_spec.h"
#include "parallel/plan/shard_plan.h"
#include "parallel/plan/topology.h"
#include "parallel/step/step_limits.h"
#include "worker/backend/backend.h"
#include "worker/run/rank_memory.h"

namespace polyreme::sizing {

// How the layers' matrices are stored; embedding, head, norms and biases never are.
enum class Quantization : uint8_t { kNone, kFp8, kW4 };
// "none", "fp8", or "awq", "gptq" and "w4a16", which take the same memory. InvalidArgument.
absl::StatusOr<Quantization> ParseQuantization(const std::string& name);
std::string NameOf(Quantization quantization);
// Of a layer's matrix stored in `dtype` where it is not quantised; w4: groups of 128 with a 16-bit
// scale and a 4-bit zero each.
double BitsPerWeight(Quantization quantization, DType dtype);

struct LaunchSettings {
  plan::ModelSpec spec;
  int32_t shards = 1;
  int32_t stages = 1;
  std::vector<int64_t> layers_per_stage;
  step::StepSettings step;  // vocabulary and stages are filled in
  bool on_gpu = true;
  DType dtype = DType::kBF16;     // of activations; on CPU kF32
  DType kv_dtype = DType::kBF16;  // kU8: eight bits, which no worker serves yet
  Quantization quantization = Quantization::kNone;
  backend::AttentionChoice attention = backend::AttentionChoice::kAuto;
  int64_t head_chunk_samples = 256;
  double utilization = 0.92;
  int64_t kv_bytes_budget = 0;  // of each rank, by hand; 0: what the GPU leaves
  // Of one rank's device; on CPU only its name is asked for.
  Gpu gpu;

  int32_t world_size() const { return shards * stages; }
};

struct RankPlan {
  Rank rank;
  plan::Place place;
  plan::Shard shard;
  run::RankMemory memory;
  run::CacheDivision division;  // of a GPU; of CPU or a budget by hand: left_bytes alone
  int64_t kv_bytes = 0;         // of the blocks that are taken
  int64_t total_bytes = 0;
};

struct LaunchPlan {
  plan::ShardPlan shards;
  step::StepLimits limits;  // num_blocks: those that fit
  std::vector<RankPlan> ranks;
  int64_t device_bytes = 0;    // of one GPU; 0 on CPU
  int32_t limiting_rank = -1;  // with the least cache; -1: sequences need no more
  // Of one sequence of the full context, on the rank that is worst off.
  bool fits = true;
  int64_t missing_bytes = 0;
  int32_t missing_rank = 0;

  int64_t kv_tokens() const { return int64_t{limits.num_blocks} * limits.tokens_per_block; }
  // Sequences of so many tokens that the cache holds at once, whatever --max-num-seqs says.
  int64_t SequencesOf(int64_t tokens) const;
};

// InvalidArgument: a layout that the model cannot have, and why.
absl::StatusOr<LaunchPlan> MakeLaunchPlan(const LaunchSettings& settings);

// What workers could not serve of this, a sentence each; empty: all of it is served.
std::vector<std::string> NotServed(const LaunchSettings& settings);

}  // namespace polyreme::sizing
