// Properties over many models and layouts: each axis is covered, nothing is held twice that should
// not be, loads balance.
#include "parallel/plan/shard_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "parallel/base/limits.h"

namespace polyreme::plan {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

ModelSpec Model(int64_t layers, int64_t query_heads, int64_t kv_heads, int64_t ffn) {
  ModelSpec spec;
  spec.num_layers = layers;
  spec.width = 64;
  spec.num_query_heads = query_heads;
  spec.num_kv_heads = kv_heads;
  spec.head_dim = 16;
  spec.ffn_width = ffn;
  spec.vocabulary = 1000;
  spec.max_positions = 128;
  return spec;
}

std::vector<ModelSpec> Models() {
  std::vector<ModelSpec> models;
  for (const auto& [query, kv] :
       {std::pair{8, 8}, std::pair{8, 4}, std::pair{8, 2}, std::pair{8, 1}, std::pair{40, 8},
        std::pair{14, 2}, std::pair{12, 3}}) {
    for (const int64_t layers : {1, 4, 7, 80}) {
      for (const int64_t ffn : {128, 13440}) {
        for (const bool tied : {false, true}) {
          ModelSpec spec = Model(layers, query, kv, ffn);
          spec.tied_head = tied;
          spec.qkv_bias = spec.qk_norm = tied;
          models.push_back(spec);
        }
      }
    }
  }
  return models;
}

constexpr std::pair<int32_t, int32_t> kLayouts[] = {{1, 1}, {1, 2}, {1, 3}, {1, 4}, {1, 8}, {2, 1},
                                                    {2, 2}, {4, 1}, {3, 2}, {7, 1}, {2, 8}};

// Calls check(spec, plan) for each model and layout that fit each other; at least a few hundred
// must.
template <class Check>
void ForEachPlan(Check check) {
  int plans = 0;
  for (const ModelSpec& spec : Models()) {
    for (const auto& [stages, shards] : kLayouts) {
      const Topology topology = *Topology::Make(stages, shards);
      const absl::StatusOr<ShardPlan> plan = ShardPlan::Make(spec, topology, {});
      if (!plan.ok()) continue;
      SCOPED_TRACE(fmt::format("{} layers {}/{} heads ffn {} on {}", spec.num_layers,
                               spec.num_query_heads, spec.num_kv_heads, spec.ffn_width,
                               topology.ToString()));
      check(spec, *plan);
      ++plans;
    }
  }
  EXPECT_GT(plans, 300);
}

// The ranges follow each other and end at `whole`.
void ExpectCover(const std::vector<Range>& ranges, int64_t whole) {
  int64_t place = 0;
  for (const Range& range : ranges) {
    EXPECT_EQ(range.begin, place);
    EXPECT_LT(range.begin, range.end);
    place = range.end;
  }
  EXPECT_EQ(place, whole);
}

TEST(ShardPlan, EveryAxisIsCoveredWithoutOverlap) {
  ForEachPlan([](const ModelSpec& spec, const ShardPlan& plan) {
    const Topology& topology = plan.topology();
    std::vector<Range> layers;
    for (int32_t stage = 0; stage < topology.stages(); ++stage) {
      std::vector<Range> heads, columns, rows;
      for (const Rank rank : topology.TensorGroup(stage)) {
        const Shard& shard = plan.ShardOf(rank);
        heads.push_back(shard.query_heads);
        columns.push_back(shard.ffn_columns);
        rows.push_back(shard.vocab_rows);
        EXPECT_EQ(shard.layers, plan.ShardOf(topology.RankAt({stage, 0})).layers);
        EXPECT_EQ(shard.has_embedding, stage == 0);
        EXPECT_EQ(shard.has_head, stage == topology.stages() - 1);
      }
      ExpectCover(heads, spec.num_query_heads);
      ExpectCover(columns, spec.ffn_width);
      ExpectCover(rows, plan.padded_vocabulary());
      layers.push_back(plan.ShardOf(topology.RankAt({stage, 0})).layers);
    }
    ExpectCover(layers, spec.num_layers);
    EXPECT_GE(plan.padded_vocabulary(), spec.vocabulary);
    EXPECT_LT(plan.padded_vocabulary(), spec.vocabulary + topology.shards() * 64);
  });
}

TEST(ShardPlan, EveryHeadIsHeldByExactlyOneShardUnlessRepeated) {
  ForEachPlan([](const ModelSpec& spec, const ShardPlan& plan) {
    std::vector<int> holders(static_cast<size_t>(spec.num_kv_heads));
    for (const Rank rank : plan.topology().TensorGroup(0)) {
      const Range heads = plan.ShardOf(rank).kv_heads;
      for (int64_t head = heads.begin; head < heads.end; ++head)
        ++holders[static_cast<size_t>(head)];
    }
    EXPECT_THAT(holders, testing::Each(plan.kv_repeats()));
    EXPECT_EQ(plan.kv_repeats() > 1, plan.topology().shards() > spec.num_kv_heads);
  });
}

TEST(ShardPlan, EveryQueryHeadHasItsKeysOnItsShard) {
  ForEachPlan([](const ModelSpec& spec, const ShardPlan& plan) {
    const int64_t group = spec.num_query_heads / spec.num_kv_heads;
    for (const Rank rank : plan.topology().TensorGroup(0)) {
      const Shard& shard = plan.ShardOf(rank);
      for (int64_t head = shard.query_heads.begin; head < shard.query_heads.end; ++head) {
        EXPECT_TRUE(shard.kv_heads.contains(head / group)) << head;
        // What the kernels assume: local query head h reads local key head h / (H / G).
        const int64_t local_group = shard.query_heads.size() / shard.kv_heads.size();
        EXPECT_EQ(shard.kv_heads.begin + (head - shard.query_heads.begin) / local_group,
                  head / group);
      }
    }
  });
}

TEST(ShardPlan, WeightsAddUpToTheModel) {
  ForEachPlan([](const ModelSpec& spec, const ShardPlan& plan) {
    if (plan.topology().world_size() != 1) return;
    const int64_t padding = plan.padded_vocabulary() - spec.vocabulary;
    const int64_t tables = spec.tied_head ? 1 : 2;
    EXPECT_EQ(plan.ShardOf(Rank{0}).weight_bytes,
              SizeOf(spec.dtype) * (NumParameters(spec) + tables * padding * spec.width));
  });
}

// No other way to deal the layers makes the heaviest stage lighter: moving one layer off it never
// helps.
TEST(ShardPlan, TheHeaviestStageIsAsLightAsCanBe) {
  ForEachPlan([](const ModelSpec& spec, const ShardPlan& plan) {
    const Topology& topology = plan.topology();
    std::vector<int64_t> weights;
    std::vector<int64_t> counts;
    for (const Rank rank : topology.PipelineColumn(0)) {
      weights.push_back(plan.ShardOf(rank).weight_bytes);
      counts.push_back(plan.ShardOf(rank).layers.size());
    }
    const auto heaviest = std::max_element(weights.begin(), weights.end());
    if (counts[static_cast<size_t>(heaviest - weights.begin())] == 1) return;
    ModelSpec one_less = spec;
    one_less.num_layers = spec.num_layers - 1;
    PlanOptions by_hand;
    by_hand.layers_per_stage = counts;
    --by_hand.layers_per_stage[static_cast<size_t>(heaviest - weights.begin())];
    const int64_t layer =
        *heaviest -
        ShardPlan::Make(one_less, topology, by_hand)
            ->ShardOf(topology.PipelineColumn(0)[static_cast<size_t>(heaviest - weights.begin())])
            .weight_bytes;
    for (const int64_t weight : weights) EXPECT_GE(weight + layer, *heaviest);
  });
}

TEST(ShardPlan, LayersAreDealtAroundEmbeddingAndHead) {
  ModelSpec spec = Model(8, 8, 8, 128);
  spec.vocabulary =
      3 * NumLayerParameters(spec) / spec.width / 64 * 64;  // a table weighs almost three layers
  const ShardPlan plan = *ShardPlan::Make(spec, *Topology::Make(4, 1), {});
  std::vector<int64_t> counts;
  for (int32_t rank = 0; rank < 4; ++rank) counts.push_back(plan.ShardOf(Rank{rank}).layers.size());
  EXPECT_THAT(counts, ElementsAre(1, 3, 3, 1));
}

TEST(ShardPlan, LayersByHandAreTaken) {
  PlanOptions options;
  options.layers_per_stage = {5, 3};
  const ShardPlan plan = *ShardPlan::Make(Model(8, 8, 8, 128), *Topology::Make(2, 1), options);
  EXPECT_EQ(plan.ShardOf(Rank{0}).layers, (Range{0, 5}));
  EXPECT_EQ(plan.ShardOf(Rank{1}).layers, (Range{5, 8}));
}

TEST(ShardPlan, RefusalsNameBothNumbers) {
  const auto refusal = [](const ModelSpec& spec, int32_t stages, int32_t shards,
                          const PlanOptions& options) {
    const absl::StatusOr<ShardPlan> plan =
        ShardPlan::Make(spec, *Topology::Make(stages, shards), options);
    EXPECT_TRUE(absl::IsInvalidArgument(plan.status()));
    return Message(plan.status());
  };
  EXPECT_THAT(refusal(Model(8, 8, 8, 128), 1, 3, {}), HasSubstr("8 query heads"));
  EXPECT_THAT(refusal(Model(8, 8, 8, 100), 1, 8, {}), HasSubstr("100 feed-forward columns"));
  EXPECT_THAT(refusal(Model(8, 24, 6, 128), 1, 4, {}), HasSubstr("6 key-value heads and 4 shards"));
  EXPECT_THAT(refusal(Model(2, 8, 8, 128), 3, 1, {}), HasSubstr("2 layers"));
  PlanOptions wrong_sum;
  wrong_sum.layers_per_stage = {4, 3};
  EXPECT_THAT(refusal(Model(8, 8, 8, 128), 2, 1, wrong_sum),
              HasSubstr("expected 8 layers in all, got 7"));
  PlanOptions wrong_count;
  wrong_count.layers_per_stage = {8};
  EXPECT_THAT(refusal(Model(8, 8, 8, 128), 2, 1, wrong_count), HasSubstr("expected 2 numbers"));
  PlanOptions empty_stage;
  empty_stage.layers_per_stage = {8, 0};
  EXPECT_THAT(refusal(Model(8, 8, 8, 128), 2, 1, empty_stage), HasSubstr("got 0"));
  PlanOptions no_block;
  no_block.tokens_per_block = 0;
  EXPECT_THAT(refusal(Model(8, 8, 8, 128), 1, 1, no_block), HasSubstr("tokens per block"));
}

TEST(ShardPlan, SumsAreExactOnPowersOfTwoUpToEight) {
  const ModelSpec spec = Model(8, 48, 48, 48 * 16);
  for (const auto& [shards, exact] :
       {std::pair{1, true}, std::pair{2, true}, std::pair{3, false}, std::pair{4, true},
        std::pair{6, false}, std::pair{8, true}, std::pair{16, false}}) {
    EXPECT_EQ(ShardPlan::Make(spec, *Topology::Make(1, shards), {})->exact_sums(), exact) << shards;
  }
}

// The heart of "layout must not change meaning": the shards' segments, laid end to end, are the
// whole axis' segments.
TEST(SumSegments, ShardsHoldWholeSegmentsOfTheWholeAxis) {
  for (const int64_t axis : {8, 24, 40, 104, 512, 1000, 13824, 27648}) {
    const std::vector<int64_t> whole = SumSegmentEnds(axis, 1, 0);
    ASSERT_EQ(whole.size(), size_t{limits::kSumSegments});
    EXPECT_EQ(whole.back(), axis);
    EXPECT_TRUE(std::is_sorted(whole.begin(), whole.end()));
    for (const int32_t shards : {2, 4, 8}) {
      std::vector<int64_t> joined;
      for (int32_t shard = 0; shard < shards; ++shard) {
        for (const int64_t end : SumSegmentEnds(axis, shards, shard)) {
          joined.push_back(axis / shards * shard + end);
        }
      }
      EXPECT_EQ(joined, whole) << axis << " over " << shards;
    }
  }
  EXPECT_THAT(SumSegmentEnds(12, 3, 1), ElementsAre(4));
  EXPECT_THAT(SumSegmentEnds(4, 2, 1), ElementsAre(2));
}

TEST(SumSegments, AnAxisThatEightDoesNotDivideStillSplitsExactly) {
  EXPECT_THAT(SumSegmentEnds(12, 1, 0), ElementsAre(1, 3, 4, 6, 7, 9, 10, 12));
  EXPECT_THAT(SumSegmentEnds(12, 4, 1), ElementsAre(1, 3));
}

TEST(ShardPlan, ExplainSaysWhatIsRepeatedAndPadded) {
  const ShardPlan plan = *ShardPlan::Make(Model(8, 8, 2, 128), *Topology::Make(2, 4), {});
  const std::string text = plan.Explain();
  EXPECT_THAT(text, HasSubstr("each key-value head is held by 2 shards"));
  EXPECT_THAT(text, HasSubstr("vocabulary padded from 1000 to 1024 rows"));
  EXPECT_THAT(text, HasSubstr("sums are exact"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1 + 8 + 3);
}

TEST(ShardPlan, CacheBytesCountKeysAndValuesOfHeldHeads) {
  PlanOptions options;
  options.tokens_per_block = 32;
  const ShardPlan plan = *ShardPlan::Make(Model(8, 8, 4, 128), *Topology::Make(2, 2), options);
  EXPECT_EQ(plan.ShardOf(Rank{0}).kv_bytes_per_block, 2 * 4 * 32 * 2 * 16 * 4);
}

}  // namespace
}  // namespace polyreme::plan
