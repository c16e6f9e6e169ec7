#include "deploy/sizing/alternatives.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <optional>

namespace polyreme::sizing {
namespace {

constexpr int32_t kRankCounts[] = {1, 2, 4, 8, 16};
constexpr int32_t kContextStep = 1024;

bool Fits(const LaunchSettings& settings) {
  const absl::StatusOr<LaunchPlan> plan = MakeLaunchPlan(settings);
  return plan.ok() && plan->fits;
}

// The largest of steps, 2 steps, ... up to `most` for which `with` fits; it is monotonous. 0: none.
int32_t Largest(int32_t step, int32_t most,
                const std::function<LaunchSettings(int32_t value)>& with) {
  int32_t low = 0, high = (most - 1) / step;  // less than what was asked for
  while (low < high) {
    const int32_t middle = low + (high - low + 1) / 2;
    if (Fits(with(middle * step))) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low * step;
}

class Search {
 public:
  Search(const LaunchSettings& settings, const GpuTable& table) : asked_(settings), table_(table) {}

  void Run() {
    ShorterContext();
    FewerSequences();
    SmallerSteps();
    OtherType();
    if (!asked_.on_gpu) return;
    for (const int32_t ranks : kRankCounts) {
      if (ranks > asked_.world_size()) OtherGpus(asked_.gpu, ranks);
    }
    for (const Gpu& gpu : table_.gpus()) {
      if (gpu.name == asked_.gpu.name) continue;
      // The first count that is enough: more of the same only costs more.
      for (const int32_t ranks : kRankCounts) {
        if (OtherGpus(gpu, ranks)) break;
      }
    }
  }
  std::vector<Alternative> Take() { return std::move(found_); }

 private:
  bool Offer(LaunchSettings settings, std::string change) {
    if (!NotServed(settings).empty()) return false;
    const absl::StatusOr<LaunchPlan> plan = MakeLaunchPlan(settings);
    if (!plan.ok() || !plan->fits) return false;
    found_.push_back({std::move(settings), std::move(change), 0, plan->kv_tokens()});
    return true;
  }

  void ShorterContext() {
    const auto with = [this](int32_t tokens) {
      LaunchSettings settings = asked_;
      settings.step.max_model_len = tokens;
      return settings;
    };
    const int32_t tokens = Largest(kContextStep, asked_.step.max_model_len, with);
    if (tokens > 0) Offer(with(tokens), fmt::format("--max-model-len {}", tokens));
  }

  void FewerSequences() {
    for (int32_t sequences = asked_.step.max_num_seqs / 2; sequences >= 1; sequences /= 2) {
      LaunchSettings settings = asked_;
      settings.step.max_num_seqs = sequences;
      if (Offer(std::move(settings), fmt::format("--max-num-seqs {}", sequences))) return;
    }
  }

  void SmallerSteps() {
    for (int32_t tokens = asked_.step.max_num_batched_tokens / 2; tokens >= 256; tokens /= 2) {
      LaunchSettings settings = asked_;
      settings.step.max_num_batched_tokens = tokens;
      if (Offer(std::move(settings), fmt::format("--max-num-batched-tokens {}", tokens))) return;
    }
  }

  void OtherType() {
    if (!asked_.on_gpu || asked_.dtype != DType::kF32) return;
    LaunchSettings settings = asked_;
    settings.dtype = settings.kv_dtype = asked_.gpu.has_bf16() ? DType::kBF16 : DType::kF16;
    Offer(std::move(settings),
          fmt::format("--dtype {}", asked_.gpu.has_bf16() ? "bfloat16" : "float16"));
  }

  // The first layout of so many that fits.
  bool OtherGpus(const Gpu& gpu, int32_t ranks) {
    for (const RankLayout& layout : LayoutsOf(asked_.spec, ranks)) {
      LaunchSettings settings = asked_;
      settings.gpu = gpu;
      settings.shards = layout.shards;
      settings.stages = layout.stages;
      settings.layers_per_stage.clear();
      if (!gpu.has_bf16() && settings.dtype == DType::kBF16) {
        settings.dtype = settings.kv_dtype = DType::kF16;
      }
      std::string change =
          fmt::format("--gpu {}:{} {}", gpu.name, ranks, FlagsOf(layout.shards, layout.stages));
      if (settings.dtype != asked_.dtype) change += " --dtype float16";
      if (Offer(std::move(settings), std::move(change))) return true;
    }
    return false;
  }

  const LaunchSettings& asked_;
  const GpuTable& table_;
  std::vector<Alternative> found_;
};

}  // namespace

std::string FlagsOf(int32_t shards, int32_t stages) {
  return stages == 1 ? fmt::format("-tp {}", shards)
                     : (shards == 1 ? fmt::format("-pp {}", stages)
                                    : fmt::format("-tp {} -pp {}", shards, stages));
}

std::vector<RankLayout> LayoutsOf(const plan::ModelSpec& spec, int32_t ranks) {
  std::vector<RankLayout> layouts;
  for (int32_t shards = ranks; shards >= 1; --shards) {
    if (ranks % shards != 0) continue;
    const absl::StatusOr<plan::Topology> topology = plan::Topology::Make(ranks / shards, shards);
    if (topology.ok() && plan::ShardPlan::Make(spec, *topology, {}).ok()) {
      layouts.push_back({shards, ranks / shards});
    }
  }
  return layouts;
}

Alternatives FindAlternatives(const LaunchSettings& settings, const GpuTable& table, size_t most) {
  Search search(settings, table);
  search.Run();
  Alternatives result{.launches = search.Take(), .by_price = settings.on_gpu};
  for (const Alternative& launch : result.launches) {
    result.by_price = result.by_price && launch.settings.gpu.price_per_hour > 0;
  }
  for (Alternative& launch : result.launches) {
    const Gpu& gpu = launch.settings.gpu;
    launch.cost =
        launch.settings.world_size() *
        (result.by_price ? gpu.price_per_hour : static_cast<double>(gpu.memory_bytes) / 1e9);
  }
  std::stable_sort(result.launches.begin(), result.launches.end(),
                   [](const Alternative& a, const Alternative& b) { return a.cost < b.cost; });
  if (result.launches.size() > most) result.launches.resize(most);
  return result;
}

}  // namespace polyreme::sizing
