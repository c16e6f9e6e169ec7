// A scheduler with a fake worker behind it, and short names for what plans are made of.
#pragma once

#include <deque>
#include <memory>
#include <ostream>
#include <vector>

#include "coordinator/sched/scheduler.h"
#include "tests/coordinator/fake_worker.h"

namespace polyreme::step {

// The whole plan, for failure messages.
void PrintTo(const StepPlan& plan, std::ostream* out);

}  // namespace polyreme::step

namespace polyreme::sched {

void PrintTo(const TokenEvent& event, std::ostream* out);

// 4 slots, 8 blocks of 4 tokens, one stage; no prefix cache, so that who gets which block is plain.
SchedulerLimits SmallLimits();

class SchedulerHarness {
 public:
  explicit SchedulerHarness(const SchedulerLimits& limits);

  // Queues a prompt of `length` tokens 100 * id, 100 * id + 1, ...
  absl::Status Add(int64_t id, int32_t length, int32_t max_tokens);
  absl::Status Add(SequenceOptions options);
  // Options of Add, to be changed.
  SequenceOptions Options(int64_t id, int32_t length, int32_t max_tokens) const;

  // The next plan, run by the worker; CHECKs that there is one and that the worker accepts it.
  step::StepPlan Plan();
  // Whether there is none.
  bool Idle() { return scheduler.Plan() == nullptr; }
  // Commits the oldest answer; drawn tokens are remembered by sequence.
  std::vector<TokenEvent> Commit();
  void Rewind(Epoch epoch);
  // The token after the prompt of Add, and after `drawn` more.
  TokenId Drawn(int64_t id, int32_t length, int32_t index) const;

  const SchedulerLimits limits;
  BlockAllocator blocks;
  Scheduler scheduler;
  std::unique_ptr<FakeWorker> worker;
  std::deque<step::StepResult> answers;
};

// The tokens of Add's prompt in [begin, end).
std::vector<TokenId> Prompt(int64_t id, int32_t begin, int32_t end);
std::vector<BlockId> Blocks(std::initializer_list<int32_t> ids);
step::SlotOpen Opened(int32_t slot, int64_t id, int32_t length, std::vector<BlockId> blocks);
step::SlotAppend Appended(int32_t slot, int32_t block);
step::StepRow Row(int32_t slot, int32_t first_position, int32_t num_tokens);
step::StepRow FedBack(int32_t slot, int32_t position, int64_t step, int32_t sample);
step::Sample Draws(int32_t slot, int32_t token_index);
step::Sample Scores(int32_t slot, int32_t token_index, TokenId target);
TokenEvent Token(int64_t id, TokenId token, int32_t sample, Finish finish = Finish::kNone);

}  // namespace polyreme::sched
