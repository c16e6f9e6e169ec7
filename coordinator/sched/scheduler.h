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
// Admission looks ahead: a sequence is let in only if the blocks that those who run will need
// within the growth horizon are left over, so that a full cache makes others wait instead of
// preempting in circles.
//
// Full blocks are published under keys that name all tokens up to their end, and found by whoever
// begins with the same tokens. A block may be found as soon as the step that fills it is planned:
// every worker runs steps in order, and within a step each layer writes all rows' keys and values
// before any row attends, so whoever is planned later, or later in the same plan, reads what was
// written. Pipeline stages and cohorts change nothing: a stage is some of the layers, and sees the
// same order.
//
// Blocks are freed at once, although steps in flight may still use them: every worker runs steps in
// order, so whoever takes a block next writes it after its last reader.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "coordinator/sched/block_allocator.h"
#include "coordinator/sched/block_key.h"
#include "coordinator/sched/cohorts.h"
#include "coordinator/sched/growth_horizon.h"
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
  // Off: only the choices of one request share blocks, and only while one of them runs.
  bool enable_prefix_caching = true;
  // Of the keys of cached blocks. Absent: drawn from the system. No plan depends on it.
  std::optional<SipHash128::Secret> cache_secret = {};
};

// Since the start, in prompt tokens of sequences that ran for the first time.
struct PrefixCacheCounts {
  int64_t queries = 0;  // looked up
  int64_t hits = 0;     // found, and not computed
  friend bool operator==(const PrefixCacheCounts&, const PrefixCacheCounts&) = default;
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
  // Forgets all cache, the prefixes too, and all steps in flight; keeps all tokens: what ran waits
  // again, in order. Steps count from 0.
  void Rewind(Epoch epoch);

  // Sequences with rows in steps in flight, each once.
  std::vector<SequenceId> InFlight() const;
  // From now on only these may start to run; empty: all. What runs is not touched.
  void Confine(std::vector<SequenceId> only) { only_ = std::move(only); }

  int32_t num_running() const { return cohorts_.size(); }
  int32_t num_waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int32_t num_in_flight() const { return num_in_flight_; }
  int64_t num_preemptions() const { return num_preemptions_; }
  const PrefixCacheCounts& prefix_cache_counts() const { return counts_; }
  // Prompt tokens of a sequence that were not computed for it when it first ran; 0 until then and
  // of sequences that have ended.
  int32_t NumCachedTokens(SequenceId sequence) const;
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
  // Blocks that `sequence` lacks to hold all its tokens and grow to the horizon.
  int32_t Demand(const Sequence& sequence) const;
  // Blocks that are free and not promised to those who run; may be negative.
  int64_t UnpromisedBlocks() const;
  // Fills reusable_ with the blocks at the beginning of this sequence that need not be computed.
  // False: one of its group is still on its way through the prompt, and waiting for it is cheaper
  // than to compute it twice.
  bool FindReusable(Sequence& sequence);
  // Opens it with reusable_.
  void Open(Sequence& sequence, int32_t cohort);
  // Gives slot and blocks back; the next plan closes the slot.
  void LeaveRunning(Sequence& sequence, Sequence::State next);
  void Preempt(Sequence& sequence);
  void End(Sequence& sequence);
  void CommitRow(const RowRecord& row, const step::StepResult& result);
  // After `sequence` got a row or a token.
  void Publish(Sequence& sequence);

  StepRecord& RecordAt(int32_t age);

  const SchedulerLimits limits_;
  BlockAllocator& blocks_;
  const KeyMaker keys_;
  GrowthHorizon horizon_;
  absl::flat_hash_map<SequenceId, std::unique_ptr<Sequence>>
      sequences_;  // until ended and committed
  std::set<Sequence*, ByOrder> waiting_;
  Cohorts cohorts_;
  std::vector<SlotId> free_slots_;  // a stack
  std::vector<SlotId> closed_;      // that the next plan closes
  std::vector<BlockId> reusable_;   // that FindReusable found
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
  PrefixCacheCounts counts_;
};

}  // namespace polyreme::sched
