// Who holds what: splits the axes of a model (layers, heads, columns, vocabulary rows) over a topology. Never tensors
// by name, so it serves each architecture.
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
  Range kv_heads;         // the same heads on several shards when there are fewer heads than shards
  Range ffn_columns;
  Range vocab_rows;       // may reach beyond the vocabulary: rows past it are padding
  bool has_embedding = false;   // first stage
  bool has_head = false;        // last stage
  int64_t weight_bytes = 0;     // in the checkpoint's dtype
  int64_t kv_bytes_per_block = 0;
  friend bool operator==(const Shard&, const Shard&) = default;
};

struct PlanOptions {
  std::vector<int64_t> layers_per_stage;   // by hand; empty: dealt by weight in bytes, embedding and head included
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
  // True if every sum over a sharded axis has the same bits as on one rank (limits::kSumSegments divides the axes and is
  // divisible by the number of shards).
  bool exact_sums() const { return exact_sums_; }
  // A table for people: a row per rank.
  std::string Explain() const;

 private:
  explicit ShardPlan(const Topology& topology) : topology_(topology) {}
  Topology topology_;
  std::vector<Shard> shards_;
  int64_t padded_vocabulary_ = 0;
  bool exact_sums_ = true;
};

}  // namespace polyreme::plan
