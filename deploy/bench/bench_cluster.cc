#include "deploy/bench/bench_cluster.h"

#include <fmt/format.h>

#include <algorithm>

#include "parallel/plan/shard_plan.h"
#include "parallel/plan/topology.h"
#include "worker/backend/cuda/plugin.h"
#include "worker/run/rank_memory.h"
#include "worker/run/step_memory.h"

namespace polyreme::bench {
namespace {

constexpr double kMemoryShare = 0.92;
constexpr absl::Duration kGpuPatience = absl::Seconds(120);

// How large one element is on the device.
int64_t WeightBytes(const ClusterOptions& options, const plan::ModelSpec& spec) {
  return SizeOf(options.on_gpu() ? options.backend.dtype : spec.dtype);
}
int64_t CacheBytes(const ClusterOptions& options) {
  return SizeOf(options.on_gpu() ? options.backend.dtype : DType::kF32);
}

int64_t HeadChunkSamples(const step::StepLimits& limits) {
  return std::min(limits.max_step_samples, 256);
}

absl::StatusOr<Ceilings> MeasureFor(const ClusterOptions& options, double weight_bytes) {
  const int32_t ranks = options.layout.ranks();
  if (options.on_gpu()) return MeasureGpuCeilings(ranks);
  ASSIGN_OR_RETURN(const auto backend,
                   backend::MakeBackend(options.device, {.num_threads = options.num_threads}));
  return MeasureCpuCeilings(backend->device(), ranks, options.num_threads,
                            static_cast<int64_t>(weight_bytes));
}

}  // namespace

absl::StatusOr<ClusterFacts> FactsWith(const ClusterOptions& options, Ceilings ceilings) {
  ASSIGN_OR_RETURN(plan::ModelSpec spec, plan::ReadModelSpec(options.model));
  const Roofline roofline(spec, WeightBytes(options, spec), CacheBytes(options));
  std::string title =
      fmt::format("{}{}, tp{}pp{}, {}{}\n", ceilings.description, options.model,
                  options.layout.shards, options.layout.stages, options.device,
                  options.format == weights::LoadFormat::kDummy ? ", random weights" : "");
  return ClusterFacts{std::move(spec), std::move(ceilings), roofline, std::move(title)};
}

absl::StatusOr<ClusterFacts> GatherFacts(const ClusterOptions& options) {
  ASSIGN_OR_RETURN(const plan::ModelSpec spec, plan::ReadModelSpec(options.model));
  const Roofline roofline(spec, WeightBytes(options, spec), CacheBytes(options));
  ASSIGN_OR_RETURN(Ceilings ceilings, MeasureFor(options, roofline.weight_bytes()));
  return FactsWith(options, std::move(ceilings));
}

absl::StatusOr<std::unique_ptr<RankThreads>> StartRanks(const ClusterOptions& options,
                                                        const step::StepLimits& limits) {
  RankThreadsOptions ranks;
  ranks.stages = options.layout.stages;
  ranks.shards = options.layout.shards;
  ranks.num_threads = options.num_threads;
  ranks.head_chunk_samples = HeadChunkSamples(limits);
  ranks.limits = limits;
  ranks.device = options.device;
  ranks.backend = options.backend;
  ranks.format = options.format;
  ranks.seed = options.seed;
  if (options.on_gpu()) ranks.patience = kGpuPatience;
  return RankThreads::Start(options.model, ranks);
}

absl::StatusOr<int32_t> BlocksThatFit(const ClusterOptions& options, const plan::ModelSpec& spec,
                                      const step::StepLimits& limits,
                                      const std::vector<BenchDevice>& devices, int32_t wanted) {
  ASSIGN_OR_RETURN(const plan::Topology topology,
                   plan::Topology::Make(options.layout.stages, options.layout.shards));
  CHECK(std::ssize(devices) == topology.world_size(), "{} devices for {} ranks", devices.size(),
        topology.world_size());
  ASSIGN_OR_RETURN(
      const plan::ShardPlan plan,
      plan::ShardPlan::Make(spec, topology,
                            {.layers_per_stage = {}, .tokens_per_block = limits.tokens_per_block}));
  int64_t blocks = wanted;
  for (int32_t i = 0; i < topology.world_size(); ++i) {
    const BenchDevice& device = devices[static_cast<size_t>(i)];
    const run::RankSetup setup{.spec = &spec,
                               .plan = &plan,
                               .rank = Rank{i},
                               .limits = limits,
                               .device = device.kind,
                               .kv_dtype = device.kind.activations,
                               .head_chunk_samples = HeadChunkSamples(limits)};
    const run::RankMemory memory = run::RankMemoryOf(setup);
    const absl::StatusOr<int64_t> room =
        run::CacheBudget(run::EmptyDeviceShare(setup, memory, device.bytes, kMemoryShare));
    if (!room.ok()) return Annotate(room.status(), fmt::format("{}: rank {}", options.model, i));
    blocks = std::min(blocks, *room / memory.kv_bytes_per_block);
  }
  return static_cast<int32_t>(blocks);
}

absl::StatusOr<int32_t> NumBlocksThatFit(const ClusterOptions& options, const plan::ModelSpec& spec,
                                         const step::StepLimits& limits, int32_t wanted) {
  if (!options.on_gpu()) return wanted;
  ASSIGN_OR_RETURN(const cuda::CudaPlugin* const plugin, cuda::OpenCudaPlugin());
  ASSIGN_OR_RETURN(const cuda::GpuSystem system, plugin->describe());
  if (options.layout.ranks() > std::ssize(system.gpus)) {
    return FailedPrecondition("expected a GPU for each of {} ranks, {} are visible to this process",
                              options.layout.ranks(), system.gpus.size());
  }
  std::vector<BenchDevice> devices;
  for (int32_t i = 0; i < options.layout.ranks(); ++i) {
    const cuda::GpuDescription& gpu = system.gpus[static_cast<size_t>(i)];
    devices.push_back({.kind = {.gpu = true,
                                .activations = options.backend.dtype,
                                .attention = options.backend.attention,
                                .compute_capability = gpu.compute_capability,
                                .num_multiprocessors = gpu.multiprocessors},
                       .bytes = gpu.total_bytes});
  }
  return BlocksThatFit(options, spec, limits, devices, wanted);
}

double SharePercent(double seconds_at_best, double seconds) {
  return 100 * seconds_at_best / seconds;
}

}  // namespace polyreme::bench
