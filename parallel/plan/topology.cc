#include "parallel/plan/topology.h"

#include "parallel/base/limits.h"

namespace polyreme::plan {

absl::StatusOr<Topology> Topology::Make(int32_t stages, int32_t shards) {
  if (stages < 1 || stages > limits::kMaxStages) {
    return InvalidArgument("expected 1 to {} pipeline stages, got {}", limits::kMaxStages, stages);
  }
  if (shards < 1 || shards > limits::kMaxRanks) {
    return InvalidArgument("expected 1 to {} tensor-parallel shards, got {}", limits::kMaxRanks,
                           shards);
  }
  if (int64_t{stages} * shards > limits::kMaxRanks) {
    return InvalidArgument("expected at most {} ranks, got {} stages x {} shards",
                           limits::kMaxRanks, stages, shards);
  }
  return Topology(stages, shards);
}

Place Topology::PlaceOf(Rank rank) const {
  CHECK(rank.value >= 0 && rank.value < world_size(), "rank {} of {}", rank.value, world_size());
  return {.stage = rank.value / shards_, .shard = rank.value % shards_};
}

Rank Topology::RankAt(Place place) const {
  CHECK(place.stage >= 0 && place.stage < stages_, "stage {} of {}", place.stage, stages_);
  CHECK(place.shard >= 0 && place.shard < shards_, "shard {} of {}", place.shard, shards_);
  return Rank{place.stage * shards_ + place.shard};
}

std::vector<Rank> Topology::TensorGroup(int32_t stage) const {
  std::vector<Rank> group;
  for (int32_t shard = 0; shard < shards_; ++shard) group.push_back(RankAt({stage, shard}));
  return group;
}

std::vector<Rank> Topology::PipelineColumn(int32_t shard) const {
  std::vector<Rank> column;
  for (int32_t stage = 0; stage < stages_; ++stage) column.push_back(RankAt({stage, shard}));
  return column;
}

std::string Topology::ToString() const {
  return fmt::format("tp{}pp{}", shards_, stages_);
}

}  // namespace polyreme::plan
