#include "parallel/plan/topology.h"

#include <gtest/gtest.h>

#include "parallel/base/limits.h"

namespace polyreme::plan {
namespace {

TEST(Topology, RanksOfATensorGroupAreNeighbours) {
  const Topology topology = *Topology::Make(/*stages=*/2, /*shards=*/3);
  EXPECT_EQ(topology.world_size(), 6);
  EXPECT_EQ(topology.TensorGroup(1), (std::vector<Rank>{Rank{3}, Rank{4}, Rank{5}}));
  EXPECT_EQ(topology.PipelineColumn(2), (std::vector<Rank>{Rank{2}, Rank{5}}));
  EXPECT_EQ(topology.ToString(), "tp3pp2");
}

TEST(Topology, PlacesAndRanksAreInverse) {
  for (int32_t stages = 1; stages <= 5; ++stages) {
    for (int32_t shards = 1; shards <= 9; ++shards) {
      const Topology topology = *Topology::Make(stages, shards);
      for (int32_t rank = 0; rank < topology.world_size(); ++rank) {
        EXPECT_EQ(topology.RankAt(topology.PlaceOf(Rank{rank})), Rank{rank});
      }
    }
  }
}

TEST(Topology, RefusesZeroAndTooManyRanks) {
  EXPECT_FALSE(Topology::Make(0, 1).ok());
  EXPECT_FALSE(Topology::Make(1, 0).ok());
  EXPECT_FALSE(Topology::Make(-1, -1).ok());
  EXPECT_FALSE(Topology::Make(limits::kMaxStages + 1, 1).ok());
  EXPECT_FALSE(Topology::Make(2, limits::kMaxRanks).ok());
  EXPECT_TRUE(Topology::Make(1, limits::kMaxRanks).ok());
}

}  // namespace
}  // namespace polyreme::plan
