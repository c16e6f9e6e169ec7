// Properties of plans over random models and layouts, and what is said of launches that do not fit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "deploy/sizing/alternatives.h"
#include "deploy/sizing/launch_plan.h"
#include "deploy/sizing/presets.h"
#include "deploy/sizing/recommend.h"
#include "deploy/sizing/report.h"
#include "deploy/sizing/speed.h"
#include "deploy/sizing/sweep.h"
#include "deploy/sizing/table.h"

namespace polyreme::sizing {
namespace {

using testing::HasSubstr;

LaunchSettings Settings(const std::string& model, const char* gpu, int32_t shards = 1,
                        int32_t stages = 1, int32_t context = 32768) {
  const absl::StatusOr<PlannedModel> found = FindModel(model);
  CHECK(found.ok(), "{}", Message(found.status()));
  LaunchSettings settings;
  settings.spec = found->spec;
  settings.gpu = *GpuTable().Find(gpu);
  settings.shards = shards;
  settings.stages = stages;
  settings.step.max_num_batched_tokens = 8192;
  settings.step.max_model_len = context;
  return settings;
}

LaunchPlan Plan(const LaunchSettings& settings) {
  absl::StatusOr<LaunchPlan> plan = MakeLaunchPlan(settings);
  CHECK(plan.ok(), "{}", Message(plan.status()));
  return *std::move(plan);
}

// A random model of one of the families, and settings for it. POLYREME_TEST_SEED replays.
class RandomModels {
 public:
  RandomModels() {
    const char* const seed = std::getenv("POLYREME_TEST_SEED");
    seed_ = seed != nullptr ? std::strtoul(seed, nullptr, 10) : std::random_device()();
    random_.seed(seed_);
  }
  std::string Replay() const { return fmt::format("replay with POLYREME_TEST_SEED={}", seed_); }

  int64_t Of(std::initializer_list<int64_t> choices) {
    return *(choices.begin() + Below(static_cast<int64_t>(choices.size())));
  }
  int64_t Below(int64_t bound) {
    return std::uniform_int_distribution<int64_t>(0, bound - 1)(random_);
  }

  LaunchSettings Next() {
    LaunchSettings settings = Settings("llama-3.1-8b", "h200", 1, 1, 1024);
    plan::ModelSpec& spec = settings.spec;
    const int64_t group = 1 + Below(6);
    spec.num_layers = 8 + Below(40);
    spec.num_kv_heads = Of({1, 2, 4, 8});
    spec.num_query_heads = 8 * group;
    spec.head_dim = Of({64, 80, 128});
    spec.width = 64 * (1 + Below(64));
    spec.ffn_width = 64 * (1 + Below(200));
    spec.vocabulary = 1000 + Below(100'000);
    spec.tied_head = Below(2) == 0;
    spec.qkv_bias = Below(2) == 0;
    spec.qk_norm = Below(2) == 0;
    settings.step.max_num_seqs = static_cast<int32_t>(1 + Below(256));
    settings.step.max_num_batched_tokens = static_cast<int32_t>(64 + Below(8192));
    settings.on_gpu = Below(2) == 0;
    if (!settings.on_gpu) settings.dtype = settings.kv_dtype = DType::kF32;
    settings.step.num_blocks = 100;
    return settings;
  }

 private:
  unsigned long seed_ = 0;
  std::mt19937_64 random_;
};

TEST(Plan, OfMoreRanksNeverNeedsMoreOnAnyRank) {
  RandomModels models;
  SCOPED_TRACE(models.Replay());
  for (int i = 0; i < 150; ++i) {
    LaunchSettings settings = models.Next();
    const bool stages = models.Below(2) == 0;
    int64_t weights = 0, kv = 0, step = 0;
    for (const int32_t ranks : {1, 2, 4, 8}) {
      (stages ? settings.stages : settings.shards) = ranks;
      const LaunchPlan plan = Plan(settings);
      int64_t most_weights = 0, most_kv = 0, most_step = 0;
      for (const RankPlan& rank : plan.ranks) {
        most_weights = std::max(most_weights, rank.memory.weights.total());
        most_kv = std::max(most_kv, rank.memory.kv_bytes_per_block);
        most_step = std::max(most_step, rank.memory.step.arena_bytes);
      }
      if (ranks > 1) {
        // Rows come in tiles of 64 for each shard, and panels of 16 on CPU: padding may grow.
        const int64_t padding = (64 * 2 + 16 * 12 * settings.spec.num_layers) * 4 *
                                (settings.spec.width + settings.spec.ffn_width);
        EXPECT_LE(most_weights, weights + (stages ? 0 : padding)) << i << " ranks " << ranks;
        EXPECT_LE(most_kv, kv) << i << " ranks " << ranks;
        // The head's logits of all shards are gathered on each: one copy more.
        if (stages) {
          EXPECT_LE(most_step, step) << i << " ranks " << ranks;
        }
      }
      weights = most_weights, kv = most_kv, step = most_step;
    }
  }
}

TEST(Plan, OfAllRanksIsTheWholeAndWhatIsRepeated) {
  RandomModels models;
  SCOPED_TRACE(models.Replay());
  for (int i = 0; i < 150; ++i) {
    LaunchSettings settings = models.Next();
    settings.on_gpu = true;  // row-major: nothing is padded but the vocabulary
    settings.dtype = settings.kv_dtype = DType::kBF16;
    const plan::ModelSpec& spec = settings.spec;
    const LaunchPlan whole = Plan(settings);
    settings.shards = static_cast<int32_t>(models.Of({1, 2, 4, 8}));
    settings.stages = static_cast<int32_t>(models.Of({1, 2, 3}));
    const LaunchPlan plan = Plan(settings);
    weights::WeightBytes sum;
    int64_t kv = 0;
    for (const RankPlan& rank : plan.ranks) {
      sum.attention += rank.memory.weights.attention;
      sum.ffn += rank.memory.weights.ffn;
      sum.tables += rank.memory.weights.tables;
      sum.vectors += rank.memory.weights.vectors;
      kv += rank.memory.kv_bytes_per_block;
    }
    const weights::WeightBytes& one = whole.ranks[0].memory.weights;
    // Key-value heads that are fewer than shards are held several times, with their weights.
    const int64_t repeats = plan.shards.kv_repeats();
    const int64_t kv_weights =
        2 * spec.num_layers * 2 * spec.num_kv_heads * spec.head_dim * spec.width;
    EXPECT_EQ(sum.attention, one.attention + (repeats - 1) * kv_weights) << i;
    EXPECT_EQ(sum.ffn, one.ffn) << i;
    EXPECT_EQ(kv, repeats * whole.ranks[0].memory.kv_bytes_per_block) << i;
    const int64_t table = 2 * plan.shards.padded_vocabulary() * spec.width;
    const int64_t tables = spec.tied_head && settings.stages == 1 ? 1 : 2;
    EXPECT_EQ(sum.tables, tables * table) << i;
    // Norms and the rope's table are on every rank of a stage; biases are split, but for those of
    // key-value heads that are repeated.
    const int64_t rope = 4 * settings.step.max_model_len * spec.head_dim;
    const int64_t norms =
        4 * spec.num_layers * (2 * spec.width + (spec.qk_norm ? 2 : 0) * spec.head_dim);
    const int64_t q_bias =
        spec.qkv_bias ? 4 * spec.num_layers * spec.num_query_heads * spec.head_dim : 0;
    const int64_t kv_bias =
        spec.qkv_bias ? 4 * spec.num_layers * 2 * spec.num_kv_heads * spec.head_dim : 0;
    EXPECT_EQ(sum.vectors, settings.shards * (settings.stages * rope + norms + 4 * spec.width) +
                               q_bias + repeats * kv_bias)
        << i;
  }
}

TEST(Plan, OfALaunchThatDoesNotFitSaysByHowMuchAndWhere) {
  const LaunchSettings settings = Settings("iquest-coder-v1-40b", "a100-80g-sxm4");
  PlanReport report{"iquest-coder-v1-40b", settings, Plan(settings), {}, {}, {}};
  EXPECT_FALSE(report.plan.fits);
  const RankPlan& rank = report.plan.ranks[0];
  EXPECT_EQ(report.plan.missing_bytes, rank.memory.sequence_bytes - rank.division.left_bytes);
  EXPECT_GT(report.plan.missing_bytes, int64_t{10} << 30);
  EXPECT_THAT(Verdict(report),
              HasSubstr(fmt::format("lacks {} bytes", Grouped(report.plan.missing_bytes))));
  EXPECT_THAT(Verdict(report), HasSubstr("on rank 0"));
  // As many bytes more, and it fits; one fewer, and it does not.
  LaunchSettings exact = settings;
  exact.utilization = 1;
  const int64_t used = settings.gpu.memory_bytes - Plan(exact).ranks[0].division.left_bytes;
  exact.gpu.memory_bytes = used + rank.memory.sequence_bytes;
  EXPECT_TRUE(Plan(exact).fits);
  exact.gpu.memory_bytes -= 1;
  EXPECT_FALSE(Plan(exact).fits);
  EXPECT_EQ(Plan(exact).missing_bytes, 1);
}

TEST(Alternatives, AllFitAreServedAndAreOrderedByCost) {
  GpuTable table;
  ASSERT_TRUE(table.Add(R"({"gpus": [{"name": "h200", "price_per_hour": 3.5}]})", "prices").ok());
  for (const char* gpu : {"a100-80g-sxm4", "rtx-4090", "v100-32g-sxm2", "l4"}) {
    const LaunchSettings settings = Settings("iquest-coder-v1-40b", gpu, 1, 1, 131072);
    const Alternatives found = FindAlternatives(settings, table, 8);
    ASSERT_FALSE(found.launches.empty()) << gpu;
    double cost = 0;
    for (const Alternative& launch : found.launches) {
      EXPECT_TRUE(Plan(launch.settings).fits) << launch.change;
      EXPECT_TRUE(NotServed(launch.settings).empty()) << launch.change;
      EXPECT_GE(launch.cost, cost);
      cost = launch.cost;
    }
    EXPECT_FALSE(found.by_price);  // most have none
  }
}

TEST(Alternatives, ShortenTheContextByAsLittleAsCanBe) {
  LaunchSettings settings = Settings("iquest-coder-v1-40b", "a100-80g-sxm4", 1, 2, 131072);
  settings.utilization = 0.75;
  const Alternatives found = FindAlternatives(settings, GpuTable(), 20);
  const auto shorter =
      std::find_if(found.launches.begin(), found.launches.end(),
                   [](const Alternative& a) { return a.change.starts_with("--max-model-len"); });
  ASSERT_FALSE(Plan(settings).fits);
  ASSERT_NE(shorter, found.launches.end());
  LaunchSettings longer = shorter->settings;
  longer.step.max_model_len += 1024;
  EXPECT_FALSE(Plan(longer).fits);
}

TEST(Recommend, AnswersEveryRoleWithinItsBudget) {
  const LaunchSettings settings = Settings("iquest-coder-v1-40b", "h200", 1, 1, 131072);
  const GpuTable table;
  for (const char* name : {"ide", "api", "farm", "scan"}) {
    const absl::StatusOr<Role> role = FindRole(name);
    ASSERT_TRUE(role.ok());
    const Recommendations found = Recommend(settings, table, *role, 8, 5);
    ASSERT_FALSE(found.launches.empty()) << name << ": " << found.why_none;
    for (const Recommendation& launch : found.launches) {
      EXPECT_LE(launch.cost, 8);
      EXPECT_TRUE(Plan(launch.settings).fits);
      EXPECT_GE(launch.each, role->tokens_per_second);
      EXPECT_FALSE(launch.reason.empty());
    }
  }
  EXPECT_TRUE(Recommend(settings, table, *FindRole("farm"), 1, 5).launches.empty());
  EXPECT_FALSE(Recommend(settings, table, *FindRole("farm"), 1, 5).why_none.empty());
}

TEST(Recommend, LooksAtPricesWhereThereAreAny) {
  GpuTable table;
  ASSERT_TRUE(table
                  .Add(R"({"currency": "EUR", "gpus": [{"name": "h200", "price_per_hour": 3.5},
                           {"name": "rtx-4090", "price_per_hour": 0.4}]})",
                       "prices")
                  .ok());
  const LaunchSettings settings = Settings("iquest-coder-v1-7b", "h200", 1, 1, 16384);
  const Recommendations found = Recommend(settings, table, *FindRole("ide"), 5, 5);
  EXPECT_TRUE(found.by_price);
  ASSERT_EQ(found.launches.size(), 2u) << found.why_none;
  EXPECT_EQ(found.launches[0].settings.gpu.name, "rtx-4090");
  EXPECT_EQ(found.launches[0].cost, 0.4 * found.launches[0].settings.world_size());
}

TEST(Sweep, HasEachLayoutInThreeWidthsOfWeightsAndDrawsBothFigures) {
  const LaunchSettings settings = Settings("iquest-coder-v1-40b", "a100-80g-sxm4", 2, 1);
  const auto rows = Sweep(settings);
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(rows->size(), 6u);  // tp2, pp2
  const std::vector<plot::Figure> figures = SweepFigures("40b", settings, *rows);
  ASSERT_EQ(figures.size(), 2u);
  EXPECT_EQ(figures[0].categories.size(), 6u);
  // Stacks are the rank's bytes.
  double stack = 0;
  for (const plot::Series& series : figures[0].series) stack += series.y[0];
  EXPECT_NEAR(stack * 0x1p30, static_cast<double>((*rows)[0].plan.ranks[0].total_bytes),
              0.02 * stack * 0x1p30);
}

TEST(Speed, OfUnequalStagesSaysByHowMuch) {
  LaunchSettings settings = Settings("iquest-coder-v1-40b", "v100-32g-sxm2", 1, 4, 8192);
  settings.dtype = settings.kv_dtype = DType::kF16;
  settings.layers_per_stage = {23, 19, 19, 19};
  const LaunchPlan plan = Plan(settings);
  // 23 layers over the mean of 20 and a quarter of the head.
  const double layer = 2.0 * (487'598'080 - 10'240);
  const double mean = (80 * layer + 2.0 * 393'216'000) / 4;
  EXPECT_NEAR(SpeedOf(settings, plan).stage_imbalance, 23 * layer / mean, 1e-9);
}

}  // namespace
}  // namespace polyreme::sizing
