// Who is which rank. Pure arithmetic: rank = stage * shards + shard, so that a tensor group is a
// run of neighbouring ranks and can sit in one host.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/base/ids.h"
#include "parallel/base/status.h"

namespace polyreme::plan {

// Where a rank stands: `stage` of the pipeline, `shard` of the tensor group.
struct Place {
  int32_t stage = 0;
  int32_t shard = 0;
  friend bool operator==(const Place&, const Place&) = default;
};

class Topology {
 public:
  Topology() = default;  // one rank
  // InvalidArgument on zero or too many stages, shards or ranks (limits.h); nothing else.
  static absl::StatusOr<Topology> Make(int32_t stages, int32_t shards);

  int32_t stages() const { return stages_; }
  int32_t shards() const { return shards_; }
  int32_t world_size() const { return stages_ * shards_; }
  Place PlaceOf(Rank rank) const;
  Rank RankAt(Place place) const;
  std::vector<Rank> TensorGroup(int32_t stage) const;  // ranks that all-reduce together, by shard
  std::vector<Rank> PipelineColumn(
      int32_t shard) const;      // ranks that hand activations on, by stage
  std::string ToString() const;  // "tp2pp2"
  friend bool operator==(const Topology&, const Topology&) = default;

 private:
  Topology(int32_t stages, int32_t shards) : stages_(stages), shards_(shards) {}
  int32_t stages_ = 1;
  int32_t shards_ = 1;
};

}  // namespace polyreme::plan
