// Decides what each step computes. Pure and single-threaded: no clock, no I/O, no log.
//
// Plan runs ahead of Commit by up to stages + 1 steps: a row's token may be one that an earlier
// step is still drawing, and the plan then names that draw. Within a step, decode rows come first,
// then prompt chunks of running sequences, then admissions, each group in order of (priority,
// arrival), until tokens, samples or blocks are spent. When blocks run out the youngest sequence is
// preempted: it goes back to waiting with its tokens and is computed again. Under pipeline
// parallelism the running sequences are dealt into one cohort per stage and a step carries one
// cohort.
//
// Blocks are freed at once, although steps in flight may still use them: every worker runs steps in
// order, so whoever takes a block next writes it after its last reader.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "coordinator/sched/block_allocator.h"
#include "coordinator/sched/cohorts.h"
#include "coordinator/sched/plan_builder.h"
#include "coordinator/sched/sequence.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/step/step_plan.h"

namespace polyreme::sched {

struct SchedulerLimits {
  step::StepLimits step;
  int32_t stages = 1;
  int32_t max_num_seqs = 1;            // running at once
  int32_t max_num_batched_tokens = 1;  // of one step
  int32_t max_waiting = 1;             // that Admit may queue
};

// What a committed step did for one sequence.
struct TokenEvent {
  enum class Kind : uint8_t {
    kToken,        // an output token
    kPromptScore,  // the log-probability of a prompt token; they come in order, from token 1 on
    kEnd,  // ended without a token: `finish` is kLength (the prompt is scored) or kNotFinite
  };
  SequenceId sequence;
  Kind kind = Kind::kToken;
  TokenId token = 0;
  int32_t sample = -1;            // where in StepResult::samples; -1 of kEnd
  Finish finish = Finish::kNone;  // not kNone: the last event of this sequence
  friend bool operator==(const TokenEvent&, const TokenEvent&) = default;
};

class Scheduler {
 public:
  // `blocks` is borrowed and outlives the scheduler; all its blocks are free. Limits are consistent
  // (CHECK).
  Scheduler(const SchedulerLimits& limits, BlockAllocator& blocks);
  ~Scheduler();

  // Whether a sequence of so many tokens can run when it is alone. InvalidArgument with both
  // numbers.
  static absl::Status CheckFits(const SchedulerLimits& limits, int32_t num_prompt_tokens,
                                int32_t max_tokens);

  // Queues a sequence. InvalidArgument if it can never fit; ResourceExhausted if max_waiting are
  // waiting.
  absl::Status Admit(std::unique_ptr<Sequence> sequence);
  // Ends a sequence: its blocks are free when this returns and it has no events any more. Unknown
  // ids are ignored: they have ended.
  void Cancel(SequenceId sequence);
  // The next step; nullptr when nothing is runnable or stages + 1 steps are in flight. Valid until
  // the next call.
  const step::StepPlan* Plan();
  // Takes the answer to the oldest step in flight. Events are valid until the next call. Internal
  // if it answers something else.
  absl::StatusOr<absl::Span<const TokenEvent>> Commit(const step::StepResult& result);
  // Forgets all cache and all steps in flight, keeps all tokens: what ran waits again, in order.
  // Steps count from 0.
  void Rewind(Epoch epoch);

  // Sequences with rows in steps in flight, each once.
  std::vector<SequenceId> InFlight() const;
  // From now on only these may start to run; empty: all. What runs is not touched.
  void Confine(std::vector<SequenceId> only) { only_ = std::move(only); }

  int32_t num_running() const { return cohorts_.size(); }
  int32_t num_waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int32_t num_in_flight() const { return num_in_flight_; }
  int64_t num_preemptions() const { return num_preemptions_; }
  const SchedulerLimits& limits() const { return limits_; }

 private:
  struct ByOrder {
    bool operator()(const Sequence* a, const Sequence* b) const { return a->order() < b->order(); }
  };

  void PlanCohort(int32_t cohort);
  void PlanRunning(int32_t cohort);
  void PlanWaiting(int32_t cohort);
  Sequence* NextWaiting() const;  // nullptr: nobody may start
  void TryAddRow(Sequence& sequence);
  // Gives `sequence` blocks for up to `wanted` positions more; preempts only if it would get none.
  // Returns how many fit.
  int32_t Reserve(Sequence& sequence, int32_t wanted);
  std::optional<BlockId> TakeByPreempting(const Sequence& sequence);
  // Blocks that `sequence` lacks to hold all its tokens and grow by one block.
  int32_t Demand(const Sequence& sequence) const;
  bool FitsBesideRunning(int32_t demand) const;
  // Who holds the full blocks of this sequence's prompt, and how many it may share. No member of
  // its group runs: nobody and none. nullopt: one is still on its way through the prompt, and
  // waiting for it is cheaper than to compute it twice.
  struct Donor {
    const Sequence* sequence = nullptr;
    int32_t num_blocks = 0;
  };
  std::optional<Donor> FindDonor(const Sequence& sequence) const;
  void Open(Sequence& sequence, int32_t cohort, Donor donor);
  // Gives slot and blocks back; the next plan closes the slot.
  void LeaveRunning(Sequence& sequence, Sequence::State next);
  void Preempt(Sequence& sequence);
  void End(Sequence& sequence);
  void CommitRow(const RowRecord& row, const step::StepResult& result);

  StepRecord& RecordAt(int32_t age);

  const SchedulerLimits limits_;
  BlockAllocator& blocks_;
  absl::flat_hash_map<SequenceId, std::unique_ptr<Sequence>>
      sequences_;  // until ended and committed
  std::set<Sequence*, ByOrder> waiting_;
  Cohorts cohorts_;
  std::vector<SlotId> free_slots_;  // a stack
  std::vector<SlotId> closed_;      // that the next plan closes
  PlanBuilder builder_;
  std::vector<StepRecord> records_;  // a ring: in flight, oldest first, from oldest_ on
  int32_t oldest_ = 0;
  int32_t num_in_flight_ = 0;
  std::vector<TokenEvent> events_;
  std::vector<SequenceId> only_;  // who may start; empty: all
  Epoch epoch_{1};
  StepId next_step_{0};
  int32_t next_cohort_ = 0;
  int64_t next_arrival_ = 0;
  int64_t num_preemptions_ = 0;
};

}  // namespace polyreme::sched
