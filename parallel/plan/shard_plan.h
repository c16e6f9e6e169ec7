// Who holds what: splits the axes of a model (layers, heads, columns, vocabulary rows) over a
// topology. Never tensors by name, so it serves each architecture.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/plan/model_spec.h"
#include "parallel/plan/topology.h"

namespace polyreme::plan {

// One rank's part. Ranges are of the whole model's axes.
struct Shard {
  Range layers;
  Range query_heads;
  Range kv_heads;  // the same heads on several shards when there are fewer heads than shards
  Range ffn_columns;
  Range vocab_rows;            // may reach beyond the vocabulary: rows past it are padding
  bool has_embedding = false;  // first stage
  bool has_head = false;       // last stage
  int64_t weight_bytes =
      0;  // in the checkpoint's dtype; a tied head on the embedding's own stage costs nothing
  int64_t kv_bytes_per_block = 0;
  friend bool operator==(const Shard&, const Shard&) = default;
};

struct PlanOptions {
  // By hand; empty: dealt by weight in bytes, embedding and head included.
  std::vector<int64_t> layers_per_stage;
  int64_t tokens_per_block = 16;
  DType kv_dtype = DType::kF32;
};

class ShardPlan {
 public:
  // InvalidArgument names both numbers when heads, columns or layers do not divide.
  static absl::StatusOr<ShardPlan> Make(const ModelSpec& spec, const Topology& topology,
                                        const PlanOptions& options);
  const Shard& ShardOf(Rank rank) const { return shards_[static_cast<size_t>(rank.value)]; }
  const Topology& topology() const { return topology_; }
  int64_t padded_vocabulary() const { return padded_vocabulary_; }
  // True if every sum over a sharded axis has the same bits as on one rank: the number of shards
  // divides limits::kSumSegments, and no axis has fewer columns than segments.
  bool exact_sums() const { return exact_sums_; }
  // Shards that hold the same key-value head; 1 if none is repeated.
  int32_t kv_repeats() const { return kv_repeats_; }
  // A table for people: a row per rank, and what is repeated, padded or not exact.
  std::string Explain() const;

 private:
  explicit ShardPlan(const Topology& topology) : topology_(topology) {}
  Topology topology_;
  std::vector<Shard> shards_;
  int64_t padded_vocabulary_ = 0;
  int64_t vocabulary_ = 0;
  bool exact_sums_ = true;
  int32_t kv_repeats_ = 1;
};

// Where the segments of a sum over an axis of `axis` columns end, for one shard: ascending, counted
// from the first column of its part, the last is the part's length. Segment i of the whole axis is
// [i axis / 8, (i + 1) axis / 8), rounded down; each shard of 1, 2, 4 or 8 holds whole segments.
// One segment where that cannot be (see exact_sums). axis is a multiple of `shards`. Pure.
std::vector<int64_t> SumSegmentEnds(int64_t axis, int32_t shards, int32_t shard);

}  // namespace polyreme::plan
