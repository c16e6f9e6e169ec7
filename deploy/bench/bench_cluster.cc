#include "deploy/bench/bench_cluster.h"

#include <fmt/format.h>

#include <algorithm>

#include "worker/backend/cuda/plugin.h"

namespace polyreme::bench {
namespace {

constexpr double kMemoryShare = 0.92;
// For a step's scratch, graphs, NCCL and the libraries' own.
constexpr double kReserveBytes = 5.0 * (1 << 30);
constexpr absl::Duration kGpuPatience = absl::Seconds(120);

// How large one element is on the device.
int64_t WeightBytes(const ClusterOptions& options, const plan::ModelSpec& spec) {
  return SizeOf(options.on_gpu() ? options.backend.dtype : spec.dtype);
}
int64_t CacheBytes(const ClusterOptions& options) {
  return SizeOf(options.on_gpu() ? options.backend.dtype : DType::kF32);
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
  ranks.head_chunk_samples = std::min(limits.max_step_samples, 256);
  ranks.limits = limits;
  ranks.device = options.device;
  ranks.backend = options.backend;
  ranks.format = options.format;
  ranks.seed = options.seed;
  if (options.on_gpu()) ranks.patience = kGpuPatience;
  return RankThreads::Start(options.model, ranks);
}

absl::StatusOr<int32_t> NumBlocksThatFit(const ClusterOptions& options, const ClusterFacts& facts,
                                         int32_t wanted) {
  if (!options.on_gpu()) return wanted;
  ASSIGN_OR_RETURN(const cuda::CudaPlugin* const plugin, cuda::OpenCudaPlugin());
  ASSIGN_OR_RETURN(const cuda::GpuSystem system, plugin->describe());
  if (options.layout.ranks() > std::ssize(system.gpus)) {
    return FailedPrecondition("expected a GPU for each of {} ranks, {} are visible to this process",
                              options.layout.ranks(), system.gpus.size());
  }
  const auto ranks = static_cast<double>(options.layout.ranks());
  double blocks = wanted;
  for (int32_t i = 0; i < options.layout.ranks(); ++i) {
    const auto total = static_cast<double>(system.gpus[static_cast<size_t>(i)].total_bytes);
    const double room =
        kMemoryShare * total - facts.roofline.resident_bytes() / ranks - kReserveBytes;
    blocks =
        std::min(blocks, room * ranks / (facts.roofline.cache_bytes_per_token() * kTokensPerBlock));
  }
  if (blocks < 1) {
    return ResourceExhausted("{}: {:.1f} GB of weights over {} GPU(s) leave no room for a cache",
                             options.model, facts.roofline.resident_bytes() / 1e9,
                             options.layout.ranks());
  }
  return static_cast<int32_t>(blocks);
}

double SharePercent(double seconds_at_best, double seconds) {
  return 100 * seconds_at_best / seconds;
}

}  // namespace polyreme::bench
