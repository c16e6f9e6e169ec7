#include "parallel/plan/shard_plan.h"

#include <algorithm>
#include <numeric>

#include "parallel/base/limits.h"

namespace polyreme::plan {
namespace {

// Rows of the vocabulary come in whole tiles of a product.
constexpr int64_t kVocabularyTile = 64;

bool SegmentsFit(int64_t axis, int32_t shards) {
  return limits::kSumSegments % shards == 0 && axis >= limits::kSumSegments;
}

absl::Status CheckDivides(const ModelSpec& spec, int32_t shards) {
  if (spec.num_query_heads % shards != 0) {
    return InvalidArgument("{} query heads cannot be split over {} shards evenly",
                           spec.num_query_heads, shards);
  }
  if (spec.ffn_width % shards != 0) {
    return InvalidArgument("{} feed-forward columns cannot be split over {} shards evenly",
                           spec.ffn_width, shards);
  }
  if (spec.num_kv_heads % shards != 0 && shards % spec.num_kv_heads != 0) {
    return InvalidArgument("{} key-value heads and {} shards: expected one to divide the other",
                           spec.num_kv_heads, shards);
  }
  return absl::OkStatus();
}

absl::Status CheckOptions(const PlanOptions& options) {
  if (options.tokens_per_block < 1 || options.tokens_per_block > limits::kMaxTokensPerBlock) {
    return InvalidArgument("expected 1 to {} tokens per block, got {}", limits::kMaxTokensPerBlock,
                           options.tokens_per_block);
  }
  if (!IsFloat(options.kv_dtype)) {
    return InvalidArgument("expected a cache of floats, got {}", NameOf(options.kv_dtype));
  }
  return absl::OkStatus();
}

// Elements of one layer that one of `shards` holds. Norms and the biases of sums are on each of
// them.
int64_t LayerElements(const ModelSpec& spec, const Shard& shard) {
  const int64_t query = shard.query_heads.size() * spec.head_dim;
  const int64_t kv = shard.kv_heads.size() * spec.head_dim;
  const int64_t ffn = shard.ffn_columns.size();
  int64_t count = spec.width * (2 * query + 2 * kv + 3 * ffn + 2);
  if (spec.qkv_bias) count += query + 2 * kv;
  if (spec.attention_out_bias) count += spec.width;
  if (spec.mlp_bias) count += 2 * ffn + spec.width;
  if (spec.qk_norm) count += 2 * spec.head_dim;
  return count;
}

// Of the embedding and the head, as far as the stage has them. A tied head beside its embedding is
// the same memory.
int64_t TableElements(const ModelSpec& spec, const Shard& shard) {
  const int64_t table = shard.vocab_rows.size() * spec.width;
  int64_t count = 0;
  if (shard.has_embedding) count += table;
  if (shard.has_head) count += spec.width;
  if (shard.has_head && !(spec.tied_head && shard.has_embedding)) count += table;
  return count;
}

// All layers weigh the same, so giving each to the stage that is lightest so far makes the heaviest
// stage as light as can be.
std::vector<int64_t> DealLayers(int64_t num_layers, int64_t layer_elements,
                                std::vector<int64_t> stage_elements) {
  std::vector<int64_t> counts(stage_elements.size(), 1);
  for (int64_t& elements : stage_elements) elements += layer_elements;
  for (int64_t left = num_layers - std::ssize(counts); left > 0; --left) {
    const auto lightest = std::min_element(stage_elements.begin(), stage_elements.end());
    *lightest += layer_elements;
    ++counts[static_cast<size_t>(lightest - stage_elements.begin())];
  }
  return counts;
}

absl::Status CheckLayersByHand(const std::vector<int64_t>& counts, int64_t num_layers,
                               int32_t stages) {
  if (std::ssize(counts) != stages) {
    return InvalidArgument("layers per stage: expected {} numbers, one per stage, got {}", stages,
                           counts.size());
  }
  int64_t sum = 0;
  for (const int64_t count : counts) {
    if (count < 1 || count > num_layers) {
      return InvalidArgument("layers per stage: expected 1 to {} layers in each, got {}",
                             num_layers, count);
    }
    sum += count;
  }
  if (sum != num_layers) {
    return InvalidArgument("layers per stage: expected {} layers in all, got {}", num_layers, sum);
  }
  return absl::OkStatus();
}

// What depends on the shard alone; layers come later.
Shard SplitAxes(const ModelSpec& spec, const Topology& topology, Place place, int64_t vocab_rows) {
  const int64_t shards = topology.shards();
  const auto part = [&](int64_t whole) {
    return Range{whole * place.shard / shards, whole * (place.shard + 1) / shards};
  };
  Shard shard;
  shard.query_heads = part(spec.num_query_heads);
  shard.kv_heads = part(spec.num_kv_heads);
  if (spec.num_kv_heads < shards) {
    const int64_t head = spec.num_kv_heads * place.shard / shards;
    shard.kv_heads = {head, head + 1};
  }
  shard.ffn_columns = part(spec.ffn_width);
  shard.vocab_rows = {vocab_rows * place.shard, vocab_rows * (place.shard + 1)};
  shard.has_embedding = place.stage == 0;
  shard.has_head = place.stage == topology.stages() - 1;
  return shard;
}

std::string ShowRange(Range range) {
  return fmt::format("{}..{}", range.begin, range.end);
}

double InMiB(int64_t bytes) {
  return static_cast<double>(bytes) / (1 << 20);
}

}  // namespace

absl::StatusOr<ShardPlan> ShardPlan::Make(const ModelSpec& spec, const Topology& topology,
                                          const PlanOptions& options) {
  const int32_t shards = topology.shards();
  RETURN_IF_ERROR(CheckOptions(options));
  RETURN_IF_ERROR(CheckDivides(spec, shards));
  if (spec.num_layers < topology.stages()) {
    return InvalidArgument("{} layers cannot be dealt to {} stages: each needs one",
                           spec.num_layers, topology.stages());
  }
  ShardPlan plan(topology);
  const int64_t tile = shards * kVocabularyTile;
  plan.vocabulary_ = spec.vocabulary;
  plan.padded_vocabulary_ = (spec.vocabulary + tile - 1) / tile * tile;
  plan.exact_sums_ = shards == 1 || (SegmentsFit(spec.num_query_heads * spec.head_dim, shards) &&
                                     SegmentsFit(spec.ffn_width, shards));
  plan.kv_repeats_ = static_cast<int32_t>(std::max<int64_t>(1, shards / spec.num_kv_heads));

  std::vector<int64_t> stage_elements;
  for (int32_t rank = 0; rank < topology.world_size(); ++rank) {
    const Place place = topology.PlaceOf(Rank{rank});
    plan.shards_.push_back(SplitAxes(spec, topology, place, plan.padded_vocabulary_ / shards));
    if (place.shard == 0) stage_elements.push_back(TableElements(spec, plan.shards_.back()));
  }
  std::vector<int64_t> counts = options.layers_per_stage;
  if (counts.empty()) {
    counts = DealLayers(spec.num_layers, LayerElements(spec, plan.shards_[0]), stage_elements);
  } else {
    RETURN_IF_ERROR(CheckLayersByHand(counts, spec.num_layers, topology.stages()));
  }

  for (int32_t rank = 0; rank < topology.world_size(); ++rank) {
    Shard& shard = plan.shards_[static_cast<size_t>(rank)];
    const int32_t stage = topology.PlaceOf(Rank{rank}).stage;
    const int64_t begin = std::accumulate(counts.begin(), counts.begin() + stage, int64_t{0});
    shard.layers = {begin, begin + counts[static_cast<size_t>(stage)]};
    shard.weight_bytes = SizeOf(spec.dtype) * (shard.layers.size() * LayerElements(spec, shard) +
                                               TableElements(spec, shard));
    shard.kv_bytes_per_block = 2 * shard.layers.size() * options.tokens_per_block *
                               shard.kv_heads.size() * spec.head_dim * SizeOf(options.kv_dtype);
  }
  return plan;
}

std::string ShardPlan::Explain() const {
  std::string text =
      fmt::format("{:>4} {:>5} {:>5} {:>9} {:>11} {:>8} {:>13} {:>15} {:>12} {:>13}\n", "rank",
                  "stage", "shard", "layers", "query heads", "kv heads", "ffn columns",
                  "vocabulary", "weights MiB", "KV block KiB");
  for (int32_t rank = 0; rank < topology_.world_size(); ++rank) {
    const Place place = topology_.PlaceOf(Rank{rank});
    const Shard& shard = ShardOf(Rank{rank});
    text += fmt::format(
        "{:>4} {:>5} {:>5} {:>9} {:>11} {:>8} {:>13} {:>15} {:>12.1f} {:>13.1f}\n", rank,
        place.stage, place.shard, ShowRange(shard.layers), ShowRange(shard.query_heads),
        ShowRange(shard.kv_heads), ShowRange(shard.ffn_columns),
        shard.has_embedding || shard.has_head ? ShowRange(shard.vocab_rows) : "-",
        InMiB(shard.weight_bytes), static_cast<double>(shard.kv_bytes_per_block) / 1024);
  }
  if (kv_repeats_ > 1)
    text += fmt::format("each key-value head is held by {} shards\n", kv_repeats_);
  if (padded_vocabulary_ != vocabulary_) {
    text += fmt::format("vocabulary padded from {} to {} rows\n", vocabulary_, padded_vocabulary_);
  }
  text += exact_sums_ ? "sums are exact: the same bits as on one rank\n"
                      : "sums are not exact: tokens as on one rank within margins only\n";
  return text;
}

std::vector<int64_t> SumSegmentEnds(int64_t axis, int32_t shards, int32_t shard) {
  CHECK(axis % shards == 0, "{} columns over {} shards", axis, shards);
  if (!SegmentsFit(axis, shards)) return {axis / shards};
  const int64_t held = limits::kSumSegments / shards;
  const int64_t begin = axis / shards * shard;
  std::vector<int64_t> ends;
  for (int64_t i = held * shard + 1; i <= held * (shard + 1); ++i) {
    ends.push_back(i * axis / limits::kSumSegments - begin);
  }
  return ends;
}

}  // namespace polyreme::plan
