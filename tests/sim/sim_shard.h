// What a worker process holds and computes, without time and network: the real slot table and the
// real validation of plans, and a cache of blocks in which every input of its stage is really
// stored and from which the history is really read back. A wrong block, a block in two hands, or a
// position that was not computed again gives another token.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "parallel/step/slot_table.h"
#include "parallel/step/step_plan.h"
#include "tests/sim/plants.h"
#include "tests/sim/sim_loop.h"
#include "tests/sim/sim_model.h"

namespace polyreme::sim {

class Shard {
 public:
  // Its cache begins with numbers that mean nothing.
  Shard(const Layout& layout, int32_t rank, const step::StepLimits& limits, Plant plant,
        uint64_t seed);

  // Slots begin anew; what the cache held stays there, as it does in a real pool.
  void BeginEpoch();
  // Checks and applies a plan as a worker does before it computes. The error of PlanValidator.
  absl::Status Accept(const step::StepPlan& plan);
  // The step that Accept took last: this stage's inputs [tokens] into the cache, and this shard's
  // parts of its outputs [tokens].
  std::vector<uint64_t> Compute(const step::StepPlan& plan, const std::vector<uint64_t>& inputs);
  // Last stage: the step's samples, from the stage's outputs [tokens].
  std::vector<step::SampleResult> Sample(const step::StepPlan& plan,
                                         const std::vector<uint64_t>& outputs);
  const step::SlotTable& slots() const { return slots_; }

 private:
  void WriteRow(const step::StepPlan& plan, size_t row, int32_t first_index,
                const std::vector<uint64_t>& inputs);
  void ReadRow(const step::StepPlan& plan, size_t row, std::vector<uint64_t>& parts) const;
  size_t Place(SlotId slot, int32_t position) const;
  bool IsFinite(const step::SlotTable::Slot& slot, int32_t position) const;

  const Layout layout_;
  const int32_t rank_;
  const step::StepLimits limits_;
  const Plant plant_;
  step::SlotTable slots_;
  step::PlanValidator validator_;
  std::vector<uint64_t> cache_;             // [block][offset]
  std::map<int32_t, OutputCounts> counts_;  // by slot, as the sampler keeps them
  Random random_;
};

}  // namespace polyreme::sim
