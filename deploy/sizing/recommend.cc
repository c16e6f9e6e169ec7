#include "deploy/sizing/recommend.h"

#include <fmt/format.h>

#include <algorithm>

#include "deploy/sizing/alternatives.h"
#include "deploy/sizing/speed.h"
#include "deploy/sizing/table.h"

namespace polyreme::sizing {
namespace {

constexpr Role kRoles[] = {
    {.name = "ide",
     .sentence = "local help for one person: two sequences of 8K tokens that flow faster than they "
                 "are read",
     .context = 16384,
     .sequences = 2,
     .own = 8192,
     .tokens_per_second = 15,
     .prompt = 2048,
     .prompt_seconds = 2},
    {.name = "api",
     .sentence = "a team's API: 32 sequences of 8K tokens at reading speed",
     .context = 32768,
     .sequences = 32,
     .own = 8192,
     .tokens_per_second = 15,
     .prompt = 8192,
     .prompt_seconds = 5},
    {.name = "farm",
     .sentence =
         "a farm for programming contests: 128K contexts, 32 samples of 4K tokens drawn from "
         "each",
     .context = 131072,
     .sequences = 64,
     .own = 4096,
     .shared_prompts = 2,
     .shared = 126976,
     .tokens_per_second = 2,
     .prompt = 131072,
     .prompt_seconds = 180},
    {.name = "scan",
     .sentence =
         "an offline scan of repositories: 8K tokens in, 1K out, as many for the money as can "
         "be",
     .context = 32768,
     .sequences = 4,
     .own = 9216,
     .tokens_per_second = 1,
     .prompt = 8192,
     .prompt_seconds = 60,
     .for_throughput = true,
     .offline_input = 8192,
     .offline_output = 1024},
};
constexpr int32_t kRankCounts[] = {1, 2, 4, 8};

// What a launch does for a role. fails: why it will not do; empty if it does.
struct Judged {
  Recommendation launch;
  std::string fails;
};

int64_t TokensNeeded(const Role& role) {
  const int64_t at_once =
      int64_t{role.sequences} * role.own + int64_t{role.shared_prompts} * role.shared;
  return std::max<int64_t>(at_once, role.context);
}

// As much of the role as the model's own context allows.
Role Within(Role role, int64_t positions) {
  const auto most = static_cast<int32_t>(positions);
  role.context = std::min(role.context, most);
  role.own = std::min(role.own, most);
  role.shared = std::min(role.shared, most - role.own);
  role.prompt = std::min(role.prompt, most);
  return role;
}

Judged Judge(const LaunchSettings& settings, const Role& role) {
  Judged judged;
  judged.launch.settings = settings;
  const absl::StatusOr<LaunchPlan> plan = MakeLaunchPlan(settings);
  if (!plan.ok()) {
    judged.fails = Message(plan.status());
    return judged;
  }
  if (!plan->fits) {
    judged.fails =
        fmt::format("{} x {} lacks {} on rank {}", settings.world_size(), settings.gpu.name,
                    Gibibytes(plan->missing_bytes), plan->missing_rank);
    return judged;
  }
  Recommendation& launch = judged.launch;
  launch.kv_tokens = plan->kv_tokens();
  const Estimate decode = DecodeRate(settings, role.sequences, role.own + role.shared);
  launch.all = decode.expected;
  launch.each = decode.expected / role.sequences;
  launch.prompt_seconds = PromptSecondsExpected(settings, role.prompt);
  if (role.for_throughput) {
    const int64_t concurrent = std::clamp<int64_t>(
        plan->SequencesOf(role.offline_input + role.offline_output), 1, plan->limits.num_slots);
    launch.offline =
        OfflineRate(settings, role.offline_input, role.offline_output, concurrent).expected;
  }
  const std::string who = fmt::format("{} x {}", settings.world_size(), settings.gpu.name);
  if (launch.kv_tokens < TokensNeeded(role)) {
    judged.fails = fmt::format("the cache of {} holds {} tokens of {}", who,
                               Grouped(launch.kv_tokens), Grouped(TokensNeeded(role)));
  } else if (launch.each < role.tokens_per_second) {
    judged.fails = fmt::format("{} gives each sequence {} tok/s of {}", who, Rate(launch.each),
                               Rate(role.tokens_per_second));
  } else if (launch.prompt_seconds > role.prompt_seconds) {
    judged.fails =
        fmt::format("{} takes {} of {} for a prompt of {}", who, Seconds(launch.prompt_seconds),
                    Seconds(role.prompt_seconds), Tokens(role.prompt));
  }
  return judged;
}

std::string ReasonOf(const Recommendation& launch, const Role& role) {
  const std::string room = fmt::format("{} tokens of cache where the role needs {}",
                                       Grouped(launch.kv_tokens), Grouped(TokensNeeded(role)));
  if (role.for_throughput) {
    return fmt::format("{} output tok/s in all, {} for each unit of cost; {}", Rate(launch.offline),
                       Rate(launch.offline / launch.cost), room);
  }
  return fmt::format("{}; {} tok/s for each of {} sequences, first token of {} in {}", room,
                     Rate(launch.each), role.sequences, Tokens(role.prompt),
                     Seconds(launch.prompt_seconds));
}

bool Better(const Recommendation& a, const Recommendation& b, const Role& role) {
  if (role.for_throughput) return a.offline / a.cost > b.offline / b.cost;
  return a.cost != b.cost ? a.cost < b.cost : a.each > b.each;
}

}  // namespace

absl::StatusOr<Role> FindRole(std::string_view name) {
  std::string names;
  for (const Role& role : kRoles) {
    if (role.name == name) return role;
    names += (names.empty() ? "" : ", ") + std::string(role.name);
  }
  return InvalidArgument("expected a role of {}, got '{:.40}'", names, name);
}

Recommendations Recommend(const LaunchSettings& settings, const GpuTable& table,
                          const Role& any_model, double budget, size_t most) {
  const Role role = Within(any_model, settings.spec.max_positions);
  Recommendations result;
  result.by_price = std::any_of(table.gpus().begin(), table.gpus().end(),
                                [](const Gpu& gpu) { return gpu.price_per_hour > 0; });
  double closest = 0;
  for (const Gpu& gpu : table.gpus()) {
    if (result.by_price && gpu.price_per_hour <= 0) continue;
    std::vector<Recommendation> of_gpu;
    for (const int32_t ranks : kRankCounts) {
      const double cost = ranks * (result.by_price ? gpu.price_per_hour : 1);
      if (cost > budget) break;
      for (const RankLayout& layout : LayoutsOf(settings.spec, ranks)) {
        LaunchSettings candidate = settings;
        candidate.gpu = gpu;
        candidate.shards = layout.shards;
        candidate.stages = layout.stages;
        candidate.layers_per_stage.clear();
        candidate.step.max_model_len = role.context;
        if (!gpu.has_bf16() && candidate.dtype == DType::kBF16) {
          candidate.dtype = candidate.kv_dtype = DType::kF16;
        }
        if (!NotServed(candidate).empty()) continue;
        Judged judged = Judge(candidate, role);
        if (!judged.fails.empty()) {
          // The largest that was tried says most.
          const double size = ranks * static_cast<double>(gpu.memory_bytes);
          if (size > closest) {
            closest = size;
            result.why_none = judged.fails;
          }
          continue;
        }
        judged.launch.cost = cost;
        judged.launch.reason = ReasonOf(judged.launch, role);
        of_gpu.push_back(std::move(judged.launch));
      }
    }
    // One row for each GPU: its best.
    const auto best = std::min_element(
        of_gpu.begin(), of_gpu.end(),
        [&](const Recommendation& a, const Recommendation& b) { return Better(a, b, role); });
    if (best != of_gpu.end()) result.launches.push_back(std::move(*best));
  }
  std::stable_sort(
      result.launches.begin(), result.launches.end(),
      [&](const Recommendation& a, const Recommendation& b) { return Better(a, b, role); });
  if (result.launches.size() > most) result.launches.resize(most);
  if (!result.launches.empty()) result.why_none.clear();
  if (result.launches.empty() && result.why_none.empty()) {
    result.why_none = "no GPU of the table is within the budget, or served";
  }
  return result;
}

}  // namespace polyreme::sizing
