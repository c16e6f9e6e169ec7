// Legal plans made at random from a seed: what a coordinator could send, in any order that it could
// choose.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "parallel/step/slot_table.h"
#include "parallel/step/step_plan.h"

namespace polyreme::step {

// Small enough that slots are reused and plans fill up within a few steps.
StepLimits SmallLimits();
// A number in [low, high].
int32_t Uniform(std::mt19937_64& random, int32_t low, int32_t high);
SamplingParams RandomSampling(std::mt19937_64& random, const StepLimits& limits);
StepResult RandomResult(std::mt19937_64& random, const StepPlan& plan, const StepLimits& limits);

class RandomPlans {
 public:
  explicit RandomPlans(uint64_t seed, const StepLimits& limits = SmallLimits());

  // A plan that is legal after those made before.
  StepPlan Next();
  // All plans so far applied.
  const SlotTable& table() const { return table_; }
  const StepLimits& limits() const { return limits_; }
  std::mt19937_64& random() { return random_; }

 private:
  void CloseSome(StepPlan& plan);
  void OpenSome(StepPlan& plan);
  void AddRow(StepPlan& plan, SlotId slot);
  void AddForks(StepPlan& plan, SlotId origin, int32_t token_index);
  BlockId AnyBlock();

  StepLimits limits_;
  std::mt19937_64 random_;
  SlotTable table_;
  int64_t num_sequences_ = 0;
};

}  // namespace polyreme::step
