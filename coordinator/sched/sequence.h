// One generation: what was asked, the tokens so far, and how far plans have run ahead of them.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "absl/types/span.h"
#include "coordinator/sched/block_allocator.h"
#include "coordinator/sched/block_key.h"
#include "parallel/base/ids.h"
#include "parallel/step/step_plan.h"

namespace polyreme::sched {

// Why a sequence ended by itself.
enum class Finish : uint8_t {
  kNone,
  kEndOfSequence,  // drew an end-of-sequence token
  kStopToken,      // drew one of stop_tokens
  kLength,     // max_tokens or max_model_len reached; or the prompt is scored and nothing was to be
               // drawn
  kNotFinite,  // the model's logits were NaN or infinite
};

// When generation ends. Stop strings are not here: they need text.
struct StopRules {
  int32_t max_tokens = 0;                // output tokens; 0: only scores the prompt
  int32_t min_tokens = 0;                // no token ends it before so many output tokens
  int32_t max_model_len = 0;             // prompt + output tokens
  std::vector<TokenId> eos_tokens = {};  // empty: end-of-sequence is ignored
  std::vector<TokenId> stop_tokens = {};
};

struct SequenceOptions {
  SequenceId id;
  std::vector<TokenId> prompt;  // not empty
  step::SamplingParams sampling;
  StopRules stop;
  bool scores_prompt = false;  // log-probabilities of the prompt's tokens, too
  int32_t priority = 0;        // lower runs earlier
  // Sequences of one group have the same prompt: its full blocks are computed once and shared while
  // one of them runs.
  std::optional<SequenceId> group;
  CacheScope scope;  // of its blocks in the prefix cache
};

// State machine: waiting -> running -> finished, and running -> waiting when preempted or rewound.
// A sequence knows three lengths: tokens committed; tokens known (and drawn by steps in flight);
// positions planned, that is, covered by rows since its slot was opened. Pure; one thread.
class Sequence {
 public:
  enum class State : uint8_t { kWaiting, kRunning, kFinished };

  explicit Sequence(SequenceOptions options);

  SequenceId id() const { return options_.id; }
  const step::SamplingParams& sampling() const { return options_.sampling; }
  const StopRules& stop() const { return options_.stop; }
  bool scores_prompt() const { return options_.scores_prompt; }
  std::optional<SequenceId> group() const { return options_.group; }
  int32_t num_prompt_tokens() const { return num_prompt_tokens_; }
  // Output tokens at most.
  int32_t max_output_tokens() const { return max_output_tokens_; }
  // Positions that ever have to be computed: a last token drawn is not run again.
  int32_t max_positions() const;

  // Who runs first and is preempted last.
  using Order = std::tuple<int32_t, int64_t>;
  Order order() const { return {options_.priority, arrival_}; }
  void set_arrival(int64_t arrival) { arrival_ = arrival; }

  State state() const { return state_; }
  const std::vector<TokenId>& tokens() const { return tokens_; }  // prompt and committed output
  int32_t num_tokens() const { return static_cast<int32_t>(tokens_.size()); }
  int32_t num_output_tokens() const { return num_tokens() - num_prompt_tokens_; }

  // Planning. Only while running.
  int32_t num_known() const { return num_tokens() + draws_in_flight_; }
  int32_t num_planned() const { return num_planned_; }
  int32_t steps_in_flight() const { return steps_in_flight_; }
  // Positions that the next row may cover: 0 when nothing is left or the rest has to be committed
  // first.
  int32_t num_to_plan() const;
  // Whether a row of the next `num_tokens` positions draws the token after it.
  bool DrawsAfter(int32_t num_tokens) const;
  // Prompt tokens below this index have their scores committed or in flight. Token 0 has none.
  int32_t num_score_planned() const { return num_score_planned_; }
  // The draw in flight that the next row's token comes from; asked only if that token is not
  // committed.
  step::TokenSource last_draw() const { return last_draw_; }
  StepId last_step() const { return last_step_; }
  SlotId slot() const { return slot_; }

  // Positions at the beginning that need not be computed if a cache holds them: not the last, which
  // the next token is drawn from, and none whose score is still asked for.
  int32_t num_reusable() const;
  // Of these positions, the prompt's that the cache held when the sequence first ran; -1 until
  // then.
  int32_t num_cached_tokens() const { return num_cached_tokens_; }
  // The slot is open from now on; the next row starts at `first_position`, whose predecessors are
  // in shared blocks.
  void Open(SlotId slot, int32_t first_position);
  // A row of `num_tokens` is in step `step`; `draw` is its draw, if it has one.
  void PlanRow(int32_t num_tokens, StepId step, std::optional<int32_t> draw);
  // Back to waiting, or to the end: forgets slot and planned positions. Its blocks have been given
  // back.
  void Close(State next);

  // Committing; legal in any state, since a row may be committed after its sequence was preempted.
  void CommitRow() { --steps_in_flight_; }
  // Adds a drawn token and says whether it ends the sequence.
  Finish CommitDraw(TokenId token);
  void CommitScore() { ++num_scored_; }
  // Steps in flight will never be committed.
  void ForgetSteps();

  // Blocks, in order of position; the sequence holds one reference to each.
  const std::vector<BlockId>& blocks() const { return blocks_; }
  void AddBlock(BlockId block) { blocks_.push_back(block); }
  void ReleaseBlocks(BlockAllocator& allocator);
  // The key of block number `index`, all of whose tokens are committed. Reckoned once.
  const BlockKey& KeyOf(int32_t index, const KeyMaker& keys);
  // Publishes those of its full blocks whose tokens are committed and whose last position is
  // planned.
  void PublishBlocks(const KeyMaker& keys, BlockAllocator& allocator);
  // Blocks that no plan has told the workers of yet.
  absl::Span<const BlockId> unsent_blocks() const;
  void MarkBlocksSent() { num_blocks_sent_ = blocks_.size(); }
  // Takes the memory for a whole life's tokens and blocks, so that no later step does.
  void ReserveMemory(int32_t tokens_per_block);

 private:
  SequenceOptions options_;  // its prompt has moved to tokens_
  int32_t num_prompt_tokens_;
  int32_t max_output_tokens_;
  int64_t arrival_ = 0;

  State state_ = State::kWaiting;
  std::vector<TokenId> tokens_;
  int32_t num_scored_ = 0;  // prompt tokens whose score is committed, from token 1 on

  SlotId slot_{-1};
  std::vector<BlockId> blocks_;
  size_t num_blocks_sent_ = 0;
  std::vector<BlockKey> keys_;  // of the first blocks; they outlive the blocks
  int32_t num_blocks_published_ = 0;
  int32_t num_cached_tokens_ = -1;
  int32_t num_planned_ = 0;
  int32_t num_score_planned_ = 1;
  int32_t draws_in_flight_ = 0;
  int32_t steps_in_flight_ = 0;
  step::TokenSource last_draw_;
  StepId last_step_{-1};
};

}  // namespace polyreme::sched
