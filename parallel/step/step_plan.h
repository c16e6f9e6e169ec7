// The two values in which coordinator and workers meet: one forward pass asked for, and its answer.
//
// A plan says what changed (slots opened, blocks appended, slots closed) and what to compute (rows,
// samples), so that its size follows the step's new work and never the length of the contexts.
// Plain data: printed, compared, validated on both sides, replayed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"

namespace polyreme::step {

class SlotTable;

// How one sequence draws its tokens. OpenAI's and vLLM's meanings; every field is already validated
// by the coordinator's one validator and checked again by Validate.
struct SamplingParams {
  float temperature = 1.0f;         // 0: greedy
  int32_t top_k = 0;                // 0: off
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1]
  float repetition_penalty = 1.0f;  // > 0; over prompt and output
  float presence_penalty = 0.0f;    // over output
  float frequency_penalty = 0.0f;   // over output
  std::vector<std::pair<TokenId, float>> logit_bias = {};
  std::vector<TokenId> allowed_tokens = {};  // empty: all
  uint64_t seed = 0;       // always set: drawn and kept by the coordinator if the user gave none
  int32_t choice = 0;      // which of n; part of the noise's key
  int32_t min_tokens = 0;  // until so many output tokens, `stop_tokens` cannot be drawn
  // End-of-sequence and stop ids, only needed while min_tokens holds.
  std::vector<TokenId> stop_tokens = {};
  int32_t num_logprobs = -1;  // -1: none; 0: of the drawn token; k: and of the k most likely
  friend bool operator==(const SamplingParams&, const SamplingParams&) = default;
};

// A sequence becomes known to the workers.
struct SlotOpen {
  SlotId slot = {};
  // n samples of one prompt: starts with that slot's prompt and the blocks that the prompt fills
  // wholly; `tokens` and `blocks` add to them. A block that the prompt fills in part is copied
  // (StepPlan::copies), never shared.
  std::optional<SlotId> fork_of = {};
  SequenceId sequence = {};
  std::vector<TokenId> tokens = {};  // prompt and committed output
  int32_t num_prompt_tokens = 0;     // how many of all its tokens are prompt
  // In order of position. They may hold computed positions already (a cached prefix): the first row
  // may start anywhere that they cover.
  std::vector<BlockId> blocks = {};
  SamplingParams sampling;
  friend bool operator==(const SlotOpen&, const SlotOpen&) = default;
};
struct SlotAppend {
  SlotId slot = {};
  std::vector<BlockId> blocks = {};
  friend bool operator==(const SlotAppend&, const SlotAppend&) = default;
};
struct BlockCopy {
  BlockId from = {};
  BlockId to = {};
  friend bool operator==(const BlockCopy&, const BlockCopy&) = default;
};
// A token that an earlier step is still computing: sample number `sample` of that step.
struct TokenSource {
  StepId step = {};
  int32_t sample = 0;
  friend bool operator==(const TokenSource&, const TokenSource&) = default;
};
// Consecutive tokens of one sequence; prompt chunk and decode are the same thing with different
// lengths.
struct StepRow {
  SlotId slot = {};
  int32_t first_position = 0;  // of the first token, in the sequence
  int32_t num_tokens = 0;      // taken from StepPlan::tokens in row order
  // Present: num_tokens is 1, and the token is fed back between the workers; StepPlan::tokens has a
  // placeholder (0) in its place.
  std::optional<TokenSource> first_token = {};
  friend bool operator==(const StepRow&, const StepRow&) = default;
};
// A place where the head is applied. The token belongs to a row of the sample's own slot or, for
// the first draw of a fork, is the last prompt token in a row of the slot it was forked from: n
// draws from one row.
struct Sample {
  enum class Kind : uint8_t {
    kDraw,    // draw the next token; the token is the last of its row
    kScore,   // the log-probability of `target`, nothing is drawn (prompt log-probabilities)
    kVerify,  // as kScore, of a drafted token
  };
  Kind kind = Kind::kDraw;
  SlotId slot = {};         // whose parameters and counters apply
  int32_t token_index = 0;  // the head is applied to this one of StepPlan::tokens
  TokenId target = 0;       // kScore, kVerify
  friend bool operator==(const Sample&, const Sample&) = default;
};

// One forward pass. Order of effects: closes, opens, appends, copies, rows, samples. Within
// StepPlan::samples order is the coordinator's; a slot has at most one kDraw sample in a plan.
struct StepPlan {
  StepId id = {};
  Epoch epoch = {};
  std::vector<SlotOpen> opened = {};
  std::vector<SlotAppend> appended = {};
  std::vector<SlotId> closed = {};
  std::vector<BlockCopy> copies = {};  // done before anything is written
  std::vector<StepRow> rows = {};
  std::vector<TokenId> tokens = {};  // of all rows, one row after another
  std::vector<Sample> samples = {};
  friend bool operator==(const StepPlan&, const StepPlan&) = default;
};

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;  // log-softmax of the raw logits, float32
  friend bool operator==(const TokenLogprob&, const TokenLogprob&) = default;
};
struct SampleResult {
  TokenId token = 0;   // drawn, or the target
  bool finite = true;  // false: some logit was NaN or infinite and no token was drawn (token is 0)
  float logprob = 0;   // of `token`; set if num_logprobs >= 0 or the kind is not kDraw
  int32_t rank = 0;    // 1 = most likely of the vocabulary; set together with logprob
  std::vector<TokenLogprob> top = {};  // num_logprobs most likely, best first
  friend bool operator==(const SampleResult&, const SampleResult&) = default;
};
struct RankTiming {
  Rank rank = {};
  absl::Duration busy = {};     // computing
  absl::Duration waiting = {};  // in collectives, receives and for fed-back tokens
  friend bool operator==(const RankTiming&, const RankTiming&) = default;
};
// The answer. Only the first shard of the last stage fills `samples` (one per Sample, same order);
// each other rank acknowledges with its timing, and the link merges them.
struct StepResult {
  StepId id = {};
  Epoch epoch = {};
  std::vector<SampleResult> samples = {};
  std::vector<RankTiming> timings = {};
  friend bool operator==(const StepResult&, const StepResult&) = default;
};

// What a plan may ask for; fixed when the cluster starts, the same on all ranks.
struct StepLimits {
  int32_t num_slots = 0;
  int32_t num_blocks = 0;
  int32_t tokens_per_block = 0;
  int32_t max_step_tokens = 0;  // StepPlan::tokens
  int32_t max_step_samples = 0;
  int32_t max_model_len = 0;  // positions of one sequence
  int32_t vocabulary = 0;     // token ids are below this
  int32_t max_steps_in_flight = 0;
  friend bool operator==(const StepLimits&, const StepLimits&) = default;
};

// Whether `plan` is one that may be applied to `slots`:
//   - its id is the one after the last plan applied; every slot, block and token id is in range;
//   - what it closes, appends to, runs or samples is open, what it opens is not (a slot may be
//   closed and opened again);
//   - a slot has one row at most, which starts no later than the end of its row before (earlier is
//   recomputation) and is
//     covered by its blocks; tokens that the slot was opened with are the row's tokens;
//   - a fed-back token names the slot's latest draw, of a step still in flight, at the row's
//   position.
// InvalidArgument names step, item and field. Pure; both sides of the wire.
absl::Status Validate(const StepPlan& plan, const SlotTable& slots, const StepLimits& limits);
// The same for one plan after another, with memory taken once. One thread.
class PlanValidator {
 public:
  explicit PlanValidator(const StepLimits& limits);
  ~PlanValidator();
  absl::Status Check(const StepPlan& plan, const SlotTable& slots);

 private:
  class Checker;
  std::unique_ptr<Checker> checker_;
};
// Whether `result` answers `plan` (id, epoch, number of samples).
absl::Status ValidateResult(const StepResult& result, const StepPlan& plan);

// Which row a token of a plan belongs to. Keeps its memory from plan to plan.
class RowFinder {
 public:
  // The rows' sizes add up to StepPlan::tokens. The plan is borrowed until the next Reset.
  void Reset(const StepPlan& plan);
  // Index into StepPlan::rows. 0 <= token_index < StepPlan::tokens.size().
  int32_t RowOf(int32_t token_index) const;
  int32_t FirstTokenOf(int32_t row) const { return begins_[static_cast<size_t>(row)]; }
  // Position of a token in its sequence.
  int32_t PositionOf(int32_t token_index) const;

 private:
  const StepPlan* plan_ = nullptr;
  std::vector<int32_t> begins_;
};

// One line for logs and failure messages: "step 812 epoch 1: 3 rows, 17 tokens, 3 samples, +1 -0
// slots".
std::string Describe(const StepPlan& plan);

}  // namespace polyreme::step
