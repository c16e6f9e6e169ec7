// No step takes memory that grows with the contexts. A binary of its own, since it counts every
// allocation.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/coordinator/allocation_count.h"
#include "tests/coordinator/scheduler_harness.h"

namespace polyreme::sched {
namespace {

struct Cost {
  int64_t allocations = 0;
  int64_t bytes = 0;
  int64_t largest_step_bytes = 0;
};

// Of Plan and Commit over 64 steps of steady decode, from `context` tokens on.
Cost CostOfDecoding(int32_t num_sequences, int32_t context) {
  constexpr int32_t kSteps = 64;
  SchedulerLimits limits;
  limits.max_num_seqs = limits.max_waiting = num_sequences;
  limits.max_num_batched_tokens = 1 << 14;
  limits.step = {.num_slots = num_sequences,
                 .num_blocks = num_sequences * (context + 256) / 16,
                 .tokens_per_block = 16,
                 .max_step_tokens = 1 << 14,
                 .max_step_samples = num_sequences,
                 .max_model_len = context + 256,
                 .vocabulary = 1000,
                 .max_steps_in_flight = 2};
  BlockAllocator blocks(limits.step.num_blocks, limits.step.tokens_per_block);
  Scheduler scheduler(limits, blocks);
  for (int32_t i = 0; i < num_sequences; ++i) {
    SequenceOptions options;
    options.id = SequenceId{i};
    options.prompt.assign(static_cast<size_t>(context), 1);
    options.stop = {.max_tokens = 200, .max_model_len = limits.step.max_model_len};
    CHECK(scheduler.Admit(std::make_unique<Sequence>(std::move(options))).ok());
  }
  step::StepResult result;
  result.epoch = Epoch{1};
  std::vector<size_t> num_samples;
  const auto step = [&] {
    const step::StepPlan* plan = scheduler.Plan();
    CHECK(plan != nullptr);
    result.id = plan->id;
    result.samples.resize(plan->samples.size());
    CHECK(scheduler.Commit(result).ok());
  };
  while (scheduler.num_waiting() > 0) step();
  for (int i = 0; i < 16; ++i) step();  // vectors find their size

  Cost cost;
  for (int32_t i = 0; i < kSteps; ++i) {
    TakeAllocationCount();
    step();
    const AllocationCount taken = TakeAllocationCount();
    cost.allocations += taken.allocations;
    cost.bytes += taken.bytes;
    cost.largest_step_bytes = std::max(cost.largest_step_bytes, taken.bytes);
  }
  return cost;
}

TEST(SchedulerAllocation, AStepTakesTheSameMemoryWhateverTheContexts) {
  const Cost at_64 = CostOfDecoding(16, 64);
  const Cost at_2k = CostOfDecoding(16, 2048);
  const Cost at_32k = CostOfDecoding(16, 32768);
  EXPECT_EQ(at_2k.allocations, at_64.allocations);
  EXPECT_EQ(at_32k.allocations, at_64.allocations);
  EXPECT_EQ(at_32k.bytes, at_64.bytes);
  EXPECT_LE(at_32k.largest_step_bytes, 16 * static_cast<int64_t>(sizeof(BlockId)));
  // What is left are the lists of new blocks that the plan tells of: one each, every sixteenth
  // step.
  EXPECT_LE(at_32k.allocations, 16 * 64 / 16);
}

}  // namespace
}  // namespace polyreme::sched
