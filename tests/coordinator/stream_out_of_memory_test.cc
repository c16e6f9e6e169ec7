// Memory that runs out on the threads of the workers' streams, at each allocation of a step's way
// to the ranks and back: they draw on the reserve, and nobody notices.
#include <gtest/gtest.h>

#include "parallel/base/limits.h"
#include "parallel/base/out_of_memory.h"
#include "tests/coordinator/api/failing_allocation.h"
#include "tests/coordinator/talking_rank.h"

namespace polyreme::engine {
namespace {

// The plan as it came to the rank; then the rank answers.
step::StepPlan Answer(TalkingRank& rank, step::StepResult result) {
  const absl::StatusOr<run::Order> order = rank.link().client()->Read();
  const auto* const plan = order.ok() ? std::get_if<step::StepPlan>(&*order) : nullptr;
  if (plan == nullptr) {
    ADD_FAILURE() << "expected a plan, got " << order.status();
    return {};
  }
  EXPECT_TRUE(rank.link().client()->SendResult(std::move(result)).ok());
  return *plan;
}

TEST(StreamOutOfMemory, AStepGoesOnWithWhatTheReserveHeld) {
  constexpr int64_t kAllocations = 60;
  const auto cluster = *Cluster::Listen(TwoShards(2, 2));
  TalkingRank a(*cluster, Identity(0, 1, 1), 8);
  TalkingRank b(*cluster, Identity(1, 1, 1), 8);
  Serve(*cluster, {&a, &b});
  int64_t num_struck = 0;
  for (int64_t n = 0; n < kAllocations; ++n) {
    ASSERT_TRUE(MemoryReserve::Hold(limits::kMemoryReserveBytes));
    const step::StepPlan plan{.id = StepId{n}, .epoch = cluster->epoch(), .tokens = {1, 2, 3}};
    const step::StepResult answer{plan.id, plan.epoch, {{.token = 7}, {.token = 8}}, {}};
    api::FailAllocation(n, 1, api::Threads::kOnReserve);
    ASSERT_TRUE(cluster->link().Submit(plan).ok());
    EXPECT_EQ(Answer(a, answer), plan);
    EXPECT_EQ(Answer(b, {plan.id, plan.epoch, {}, {}}), plan);
    const absl::StatusOr<step::StepResult> result =
        cluster->link().Await(plan.id, MonotonicNow() + kPatience);
    const bool struck = api::FailNoAllocation();
    ASSERT_TRUE(result.ok()) << result.status() << " at allocation " << n;
    EXPECT_EQ(result->samples, answer.samples);
    EXPECT_TRUE(cluster->failure().ok()) << cluster->failure();
    EXPECT_TRUE(!struck || !MemoryReserve::held()) << "at allocation " << n;
    num_struck += struck ? 1 : 0;
  }
  EXPECT_GT(num_struck, 10) << "the streams' threads may not draw on the reserve";
}

}  // namespace
}  // namespace polyreme::engine
