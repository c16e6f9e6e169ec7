#include "deploy/sizing/launch_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "parallel/base/limits.h"
#include "parallel/plan/cache_blocks.h"

namespace polyreme::sizing {
namespace {

// The plugin's kernels as the released build has them: FlashInfer's FA2 path from 8.0 on, its
// Hopper path on 9.0.
backend::DeviceKind KindOf(const LaunchSettings& settings) {
  backend::DeviceKind kind;
  if (!settings.on_gpu) return kind;
  kind.gpu = true;
  kind.activations = settings.dtype;
  kind.attention = settings.attention;
  kind.compute_capability = settings.gpu.compute_capability;
  kind.num_multiprocessors = settings.gpu.num_multiprocessors;
  return kind;
}

// Ranks that hold as much take as much.
using Likeness = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, bool, bool>;
Likeness LikenessOf(const plan::Shard& shard) {
  return {shard.layers.size(),     shard.query_heads.size(),
          shard.kv_heads.size(),   shard.ffn_columns.size(),
          shard.vocab_rows.size(), shard.has_embedding,
          shard.has_head};
}

void Quantize(const LaunchSettings& settings, weights::WeightBytes& bytes) {
  if (settings.quantization == Quantization::kNone) return;
  const double part = BitsPerWeight(settings.quantization, settings.dtype) /
                      BitsPerWeight(Quantization::kNone, settings.dtype);
  const auto scale = [part](int64_t& value) {
    value = static_cast<int64_t>(static_cast<double>(value) * part);
  };
  scale(bytes.attention);
  scale(bytes.ffn);
}

// What the cache of this rank may have.
int64_t RoomOf(const LaunchSettings& settings, const run::RankSetup& setup, RankPlan& rank) {
  if (settings.kv_bytes_budget > 0 || !settings.on_gpu) {
    rank.division.left_bytes = settings.kv_bytes_budget;
  } else {
    rank.division = run::DivideDevice(
        run::EmptyDeviceShare(setup, rank.memory, settings.gpu.memory_bytes, settings.utilization));
  }
  return rank.division.left_bytes;
}

void FindWorst(LaunchPlan& plan, int64_t needed, int32_t rank) {
  if (needed <= plan.missing_bytes) return;
  plan.fits = false;
  plan.missing_bytes = needed;
  plan.missing_rank = rank;
}

}  // namespace

absl::StatusOr<Quantization> ParseQuantization(const std::string& name) {
  if (name == "none" || name.empty()) return Quantization::kNone;
  if (name == "fp8") return Quantization::kFp8;
  if (name == "awq" || name == "gptq" || name == "w4a16") return Quantization::kW4;
  return InvalidArgument("expected none, fp8, awq, gptq or w4a16, got '{:.40}'", name);
}

std::string NameOf(Quantization quantization) {
  switch (quantization) {
    case Quantization::kNone:
      return "none";
    case Quantization::kFp8:
      return "fp8";
    case Quantization::kW4:
      return "w4a16";
  }
  return "";
}

double BitsPerWeight(Quantization quantization, DType dtype) {
  switch (quantization) {
    case Quantization::kNone:
      return 8.0 * static_cast<double>(SizeOf(dtype));
    case Quantization::kFp8:
      return 8;
    case Quantization::kW4:
      return 4 + (16 + 4) / 128.0;
  }
  return 0;
}

int64_t LaunchPlan::SequencesOf(int64_t tokens) const {
  return limits.num_blocks / plan::BlocksOf(tokens, limits.tokens_per_block);
}

absl::StatusOr<LaunchPlan> MakeLaunchPlan(const LaunchSettings& settings) {
  ASSIGN_OR_RETURN(const plan::Topology topology,
                   plan::Topology::Make(settings.stages, settings.shards));
  // The engine's own cache types are checked there; eight bits are looked at from here alone.
  const plan::PlanOptions options{
      .layers_per_stage = settings.layers_per_stage,
      .tokens_per_block = settings.step.block_size,
      .kv_dtype = settings.kv_dtype == DType::kU8 ? settings.dtype : settings.kv_dtype};
  ASSIGN_OR_RETURN(plan::ShardPlan shards, plan::ShardPlan::Make(settings.spec, topology, options));
  step::StepSettings step = settings.step;
  step.vocabulary = static_cast<int32_t>(settings.spec.vocabulary);
  step.stages = settings.stages;
  LaunchPlan plan{.shards = std::move(shards), .limits = step::LimitsOf(step), .ranks = {}};
  plan.device_bytes = settings.on_gpu ? settings.gpu.memory_bytes : 0;

  std::map<Likeness, run::RankMemory> known;
  std::vector<plan::CacheRoom> rooms;
  for (int32_t i = 0; i < topology.world_size(); ++i) {
    const run::RankSetup setup{.spec = &settings.spec,
                               .plan = &plan.shards,
                               .rank = Rank{i},
                               .limits = plan.limits,
                               .device = KindOf(settings),
                               .kv_dtype = settings.kv_dtype,
                               .head_chunk_samples = settings.head_chunk_samples};
    const auto [memory, is_new] = known.try_emplace(LikenessOf(setup.shard()));
    if (is_new) {
      memory->second = run::RankMemoryOf(setup);
      Quantize(settings, memory->second.weights);
    }
    RankPlan rank{.rank = Rank{i},
                  .place = topology.PlaceOf(Rank{i}),
                  .shard = setup.shard(),
                  .memory = memory->second,
                  .division = {}};
    rooms.push_back({RoomOf(settings, setup, rank), rank.memory.kv_bytes_per_block});
    plan.ranks.push_back(std::move(rank));
  }

  const bool by_hand = step.num_blocks > 0;
  const plan::CacheBlocks blocks = plan::BlocksThatFit(rooms, step::MostBlocks(plan.limits));
  plan.limiting_rank = blocks.limited_by;
  plan.limits.num_blocks =
      by_hand ? step.num_blocks : static_cast<int32_t>(std::max<int64_t>(0, blocks.num_blocks));
  for (RankPlan& rank : plan.ranks) {
    rank.kv_bytes = plan.limits.num_blocks * rank.memory.kv_bytes_per_block;
    rank.total_bytes = rank.memory.TotalBytes(plan.limits.num_blocks);
    FindWorst(plan,
              by_hand && settings.on_gpu
                  ? rank.total_bytes - settings.gpu.memory_bytes
                  : (by_hand ? 0 : rank.memory.sequence_bytes - rank.division.left_bytes),
              rank.rank.value);
  }
  return plan;
}

std::vector<std::string> NotServed(const LaunchSettings& settings) {
  std::vector<std::string> why;
  if (settings.quantization != Quantization::kNone) {
    why.push_back(fmt::format(
        "{} weights are arithmetic only: this version serves bfloat16, float16 and float32",
        NameOf(settings.quantization)));
  }
  if (settings.kv_dtype == DType::kU8) {
    why.push_back(
        "an fp8 cache is arithmetic only: this version's cache has the type of the activations");
  }
  if (!settings.on_gpu) return why;
  if (settings.kv_dtype != DType::kU8 && settings.kv_dtype != settings.dtype) {
    why.push_back("this version's cache has the type of the activations");
  }
  const int32_t capability = settings.gpu.compute_capability;
  if (capability >= 100) {
    why.push_back(fmt::format("the plugin has no code for compute capability {}.{} yet",
                              capability / 10, capability % 10));
  }
  if (!settings.gpu.has_bf16() && settings.dtype == DType::kBF16) {
    why.push_back(fmt::format("{} has no bfloat16: give --dtype float16", settings.gpu.name));
  }
  return why;
}

}  // namespace polyreme::sizing
