// One StepPlan in the making, with what is left of its budgets, and the record by which Commit will
// read the answer.
#pragma once

#include <cstdint>
#include <vector>

#include "coordinator/sched/sequence.h"
#include "parallel/step/step_plan.h"

namespace polyreme::sched {

// Whose row a planned step holds, and which of its samples are that row's: scores first, then at
// most one draw.
struct RowRecord {
  Sequence* sequence = nullptr;
  int32_t first_sample = 0;
  int32_t num_scores = 0;
  bool draws = false;
  bool ends_prompt = false;  // the row holds the prompt's last token
};
struct StepRecord {
  StepId id;
  int32_t num_samples = 0;
  std::vector<RowRecord> rows;
};

// Pure; one thread. Keeps its vectors from plan to plan, so that a steady step takes no memory.
class PlanBuilder {
 public:
  struct Budget {
    int32_t tokens = 0;
    int32_t samples = 0;
  };

  // Empties the plan. `record` is borrowed until the next Start.
  void Start(StepId id, Epoch epoch, Budget budget, StepRecord* record);
  bool empty() const { return plan_.rows.empty(); }
  // Positions that a row of `sequence` may still have: what is left to plan, within the budgets.
  int32_t RoomFor(const Sequence& sequence) const;
  // Tells the workers of `sequence`, which has just been opened. Its blocks follow with its row, in
  // this plan.
  void Open(const Sequence& sequence);
  // Adds a row of `num_tokens` <= RoomFor positions whose blocks the sequence holds.
  void AddRow(Sequence& sequence, int32_t num_tokens);
  // The plan, with `closed` in it. Valid until Start.
  const step::StepPlan& Finish(std::vector<SlotId>& closed);

 private:
  void SendBlocks(Sequence& sequence);
  void AddTokens(const Sequence& sequence, int32_t num_tokens);
  void AddSamples(const Sequence& sequence, int32_t num_tokens, RowRecord& row);

  step::StepPlan plan_;
  Budget left_;
  StepRecord* record_ = nullptr;
};

}  // namespace polyreme::sched
