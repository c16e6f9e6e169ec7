// Collectives take no memory once their group is made.

#include <gtest/gtest.h>

#include "tests/parallel/allocation_count.h"
#include "tests/parallel/ranks.h"

namespace polyreme::comm {
namespace {

using Kind = ProcessGroup::Kind;

class SteadyState : public testing::TestWithParam<Kind> {};
INSTANTIATE_TEST_SUITE_P(All, SteadyState,
                         testing::Values(Kind::kThreads, Kind::kSharedMemory, Kind::kTcp),
                         [](const auto& instance) { return NameOf(instance.param); });

TEST_P(SteadyState, NoOperationAllocates) {
  RanksOptions options;
  options.kind = GetParam();
  options.shards = 3;
  ExpectAllWell(options, [&](ProcessGroup& group, Lane& lane) {
    Communicator& tensor = group.tensor();
    std::vector<float> x(300000), y(100000), whole(300000);
    const auto view = [](std::vector<float>& values, int64_t count) {
      return TensorView{values.data(), DType::kF32, Shape{count}};
    };
    const int next = (tensor.rank() + 1) % 3, previous = (tensor.rank() + 2) % 3;
    const auto work = [&] {
      for (const int64_t count : {1, 384, 20000, 100000}) {
        tensor.AllReduceSum(lane, view(x, 3 * count));
        tensor.ReduceScatterSum(lane, view(x, 3 * count), view(y, count));
        tensor.AllGather(lane, view(y, count), view(whole, 3 * count));
        tensor.Broadcast(lane, view(x, count), 1);
        const Communicator::Outgoing send{view(x, count), next};
        const Communicator::Incoming receive{view(y, count), previous};
        tensor.Exchange(lane, {&send, 1}, {&receive, 1});
      }
    };
    work();
    tensor.AllReduceSum(lane, view(x, 1));
    const int64_t before = NumAllocations();
    work();
    const int64_t after = NumAllocations();
    tensor.AllReduceSum(lane,
                        view(x, 1));  // nobody leaves, and frees or takes, before all have looked
    EXPECT_EQ(after, before);
  });
}

}  // namespace
}  // namespace polyreme::comm
