// Walks a plan in the order of its effects over an overlay of the slots it touches, so that each
// item is judged by the state the items before it leave behind, while the table itself stays as it
// is.
#include <algorithm>
#include <cmath>

#include "absl/types/span.h"
#include "parallel/base/limits.h"
#include "parallel/step/slot_table.h"
#include "parallel/step/step_plan.h"

namespace polyreme::step {
namespace {

absl::Status CheckTokens(absl::Span<const TokenId> tokens, int32_t vocabulary) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocabulary) {
      return InvalidArgument("tokens[{}]: expected 0 to {}, got {}", i, vocabulary - 1, tokens[i]);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckNumbers(const SamplingParams& p, const StepLimits& limits) {
  if (!(p.temperature >= 0) || !std::isfinite(p.temperature)) {
    return InvalidArgument("temperature: expected at least 0, got {}", p.temperature);
  }
  if (p.top_k < 0) return InvalidArgument("top_k: expected at least 0, got {}", p.top_k);
  if (!(p.top_p > 0 && p.top_p <= 1)) {
    return InvalidArgument("top_p: expected more than 0 and at most 1, got {}", p.top_p);
  }
  if (!(p.min_p >= 0 && p.min_p <= 1)) {
    return InvalidArgument("min_p: expected 0 to 1, got {}", p.min_p);
  }
  if (!(p.repetition_penalty > 0) || !std::isfinite(p.repetition_penalty)) {
    return InvalidArgument("repetition_penalty: expected more than 0, got {}",
                           p.repetition_penalty);
  }
  if (!std::isfinite(p.presence_penalty) || !std::isfinite(p.frequency_penalty)) {
    return InvalidArgument("presence_penalty, frequency_penalty: expected numbers, got {} and {}",
                           p.presence_penalty, p.frequency_penalty);
  }
  if (p.choice < 0 || p.choice >= limits::kMaxChoices) {
    return InvalidArgument("choice: expected 0 to {}, got {}", limits::kMaxChoices - 1, p.choice);
  }
  if (p.min_tokens < 0 || p.min_tokens > limits.max_model_len) {
    return InvalidArgument("min_tokens: expected 0 to {}, got {}", limits.max_model_len,
                           p.min_tokens);
  }
  if (p.num_logprobs < -1 || p.num_logprobs > limits::kMaxLogprobs) {
    return InvalidArgument("num_logprobs: expected -1 to {}, got {}", limits::kMaxLogprobs,
                           p.num_logprobs);
  }
  return absl::OkStatus();
}

absl::Status CheckSampling(const SamplingParams& p, const StepLimits& limits) {
  RETURN_IF_ERROR(CheckNumbers(p, limits));
  if (std::ssize(p.logit_bias) > limits::kMaxLogitBias) {
    return InvalidArgument("logit_bias: expected at most {} entries, got {}", limits::kMaxLogitBias,
                           p.logit_bias.size());
  }
  for (const auto& [token, bias] : p.logit_bias) {
    if (token < 0 || token >= limits.vocabulary || !std::isfinite(bias)) {
      return InvalidArgument("logit_bias: expected a number for a token below {}, got {} for {}",
                             limits.vocabulary, bias, token);
    }
  }
  if (std::ssize(p.allowed_tokens) > limits::kMaxAllowedTokens) {
    return InvalidArgument("allowed_tokens: expected at most {} entries, got {}",
                           limits::kMaxAllowedTokens, p.allowed_tokens.size());
  }
  if (std::ssize(p.stop_tokens) > limits::kMaxStopTokens) {
    return InvalidArgument("stop_tokens: expected at most {} entries, got {}",
                           limits::kMaxStopTokens, p.stop_tokens.size());
  }
  RETURN_IF_ERROR(Annotate(CheckTokens(p.allowed_tokens, limits.vocabulary), "allowed_tokens"));
  return Annotate(CheckTokens(p.stop_tokens, limits.vocabulary), "stop_tokens");
}

// What a slot will be once the items checked so far have been applied. Vectors are counted, not
// copied.
struct SlotView {
  bool open = false;
  SequenceId sequence;
  std::optional<SequenceId> forked_from;
  int32_t num_blocks = 0;
  int32_t num_prompt_tokens = 0;
  int32_t num_positions = 0;
  std::optional<SlotTable::Draw> last_draw;
  // Tokens it was opened with: first those of a slot that it was forked from, then its own.
  absl::Span<const TokenId> shared_tokens;
  absl::Span<const TokenId> own_tokens;
  bool has_append = false;
  bool has_row = false;
  bool has_draw = false;
};

struct BlockUse {
  BlockId block;
  bool is_written = false;
  friend auto operator<=>(const BlockUse&, const BlockUse&) = default;
};

}  // namespace

class PlanValidator::Checker {
 public:
  explicit Checker(const StepLimits& limits)
      : limits_(limits),
        views_(static_cast<size_t>(limits.num_slots)),
        views_of_(static_cast<size_t>(limits.num_slots), 0) {}

  int32_t num_slots() const { return limits_.num_slots; }

  absl::Status Run(const StepPlan& plan, const SlotTable& slots) {
    plan_ = &plan;
    slots_ = &slots;
    tokens_seen_ = 0;
    ++num_plans_;
    RETURN_IF_ERROR(CheckSizes());
    RETURN_IF_ERROR(Each("closed", plan_->closed, &Checker::CheckClose));
    RETURN_IF_ERROR(Each("opened", plan_->opened, &Checker::CheckOpen));
    RETURN_IF_ERROR(Each("appended", plan_->appended, &Checker::CheckAppend));
    RETURN_IF_ERROR(CheckCopies());
    RETURN_IF_ERROR(Each("rows", plan_->rows, &Checker::CheckRow));
    if (tokens_seen_ != std::ssize(plan_->tokens)) {
      return InvalidArgument("tokens: expected {} for the rows, got {}", tokens_seen_,
                             plan_->tokens.size());
    }
    finder_.Reset(*plan_);
    return Each("samples", plan_->samples, &Checker::CheckSample);
  }

 private:
  template <class Item>
  absl::Status Each(std::string_view name, const std::vector<Item>& items,
                    absl::Status (Checker::*check)(const Item&)) {
    for (size_t i = 0; i < items.size(); ++i) {
      if (absl::Status s = (this->*check)(items[i]); !s.ok()) {
        return Annotate(s, fmt::format("{}[{}]", name, i));
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckSizes() const;
  absl::Status CheckClose(const SlotId& slot);
  absl::Status CheckOpen(const SlotOpen& opened);
  absl::Status CheckAppend(const SlotAppend& append);
  absl::Status CheckCopies();
  absl::Status CheckRow(const StepRow& row);
  absl::Status CheckRowTokens(const StepRow& row, const SlotView& slot) const;
  absl::Status CheckSource(const StepRow& row, const SlotView& slot) const;
  absl::Status CheckSample(const Sample& sample);
  absl::Status CheckDraw(const Sample& sample, SlotView& slot);
  absl::Status CheckBlocks(absl::Span<const BlockId> blocks, int32_t num_before) const;

  // The slot as the items so far leave it. InvalidArgument unless its id is in range.
  absl::StatusOr<SlotView*> Find(SlotId slot);
  absl::StatusOr<SlotView*> FindOpen(SlotId slot);

  const StepLimits limits_;
  const StepPlan* plan_ = nullptr;
  const SlotTable* slots_ = nullptr;
  std::vector<SlotView> views_;    // by slot
  std::vector<int64_t> views_of_;  // which plan, by number, a view belongs to; others are stale
  int64_t num_plans_ = 0;
  int64_t tokens_seen_ = 0;
  std::vector<BlockUse> block_uses_;
  RowFinder finder_;
};

absl::Status PlanValidator::Checker::CheckSizes() const {
  if (plan_->id.value != slots_->last_step().value + 1) {
    return InvalidArgument("id: expected {}, got {}", slots_->last_step().value + 1,
                           plan_->id.value);
  }
  if (plan_->epoch.value < 0) {
    return InvalidArgument("epoch: expected at least 0, got {}", plan_->epoch.value);
  }
  if (std::ssize(plan_->tokens) > limits_.max_step_tokens) {
    return InvalidArgument("tokens: expected at most {}, got {}", limits_.max_step_tokens,
                           plan_->tokens.size());
  }
  if (std::ssize(plan_->samples) > limits_.max_step_samples) {
    return InvalidArgument("samples: expected at most {}, got {}", limits_.max_step_samples,
                           plan_->samples.size());
  }
  if (std::ssize(plan_->copies) > limits_.num_slots) {
    return InvalidArgument("copies: expected at most {}, got {}", limits_.num_slots,
                           plan_->copies.size());
  }
  return CheckTokens(plan_->tokens, limits_.vocabulary);
}

absl::StatusOr<SlotView*> PlanValidator::Checker::Find(SlotId id) {
  if (id.value < 0 || id.value >= slots_->num_slots()) {
    return InvalidArgument("slot: expected 0 to {}, got {}", slots_->num_slots() - 1, id.value);
  }
  SlotView& view = views_[static_cast<size_t>(id.value)];
  int64_t& view_of = views_of_[static_cast<size_t>(id.value)];
  if (view_of != num_plans_) {
    view_of = num_plans_;
    view = SlotView{};
    const SlotTable::Slot& slot = slots_->at(id);
    view.open = slot.open;
    view.sequence = slot.sequence;
    view.forked_from = slot.forked_from;
    view.num_blocks = static_cast<int32_t>(slot.blocks.size());
    view.num_prompt_tokens = slot.num_prompt_tokens;
    view.num_positions = slot.num_positions;
    view.last_draw = slot.last_draw;
    view.own_tokens = slot.tokens;
  }
  return &view;
}

absl::StatusOr<SlotView*> PlanValidator::Checker::FindOpen(SlotId id) {
  ASSIGN_OR_RETURN(SlotView * slot, Find(id));
  if (!slot->open) return InvalidArgument("slot {} is not open", id.value);
  return slot;
}

absl::Status PlanValidator::Checker::CheckClose(const SlotId& id) {
  ASSIGN_OR_RETURN(SlotView * slot, FindOpen(id));
  *slot = SlotView{};
  return absl::OkStatus();
}

absl::Status PlanValidator::Checker::CheckBlocks(absl::Span<const BlockId> blocks,
                                                 int32_t num_before) const {
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (blocks[i].value < 0 || blocks[i].value >= limits_.num_blocks) {
      return InvalidArgument("blocks[{}]: expected 0 to {}, got {}", i, limits_.num_blocks - 1,
                             blocks[i].value);
    }
  }
  const int64_t longest =
      (int64_t{limits_.max_model_len} + limits_.tokens_per_block - 1) / limits_.tokens_per_block;
  if (num_before + std::ssize(blocks) > longest) {
    return InvalidArgument("blocks: expected at most {} of one slot, got {} + {}", longest,
                           num_before, blocks.size());
  }
  return absl::OkStatus();
}

absl::Status PlanValidator::Checker::CheckOpen(const SlotOpen& opened) {
  ASSIGN_OR_RETURN(SlotView * slot, Find(opened.slot));
  if (slot->open) return InvalidArgument("slot {} is open already", opened.slot.value);
  if (opened.sequence.value < 0) {
    return InvalidArgument("sequence: expected at least 0, got {}", opened.sequence.value);
  }
  SlotView next;
  next.open = true;
  next.sequence = opened.sequence;
  next.num_prompt_tokens = opened.num_prompt_tokens;
  if (opened.fork_of.has_value()) {
    ASSIGN_OR_RETURN(const SlotView* origin, FindOpen(*opened.fork_of));
    if (origin->num_prompt_tokens != opened.num_prompt_tokens) {
      return InvalidArgument("num_prompt_tokens: expected the origin's {}, got {}",
                             origin->num_prompt_tokens, opened.num_prompt_tokens);
    }
    next.forked_from = origin->sequence;
    next.num_blocks =
        NumForkedBlocks(origin->num_prompt_tokens, origin->num_blocks, limits_.tokens_per_block);
    // A fork of a fork opened in this very plan finds the prompt where its origin found it.
    const bool shared = !origin->shared_tokens.empty();
    next.shared_tokens = (shared ? origin->shared_tokens : origin->own_tokens)
                             .first(static_cast<size_t>(origin->num_prompt_tokens));
  }
  next.own_tokens = opened.tokens;
  const int64_t num_tokens = std::ssize(next.shared_tokens) + std::ssize(next.own_tokens);
  if (opened.num_prompt_tokens < 1 || opened.num_prompt_tokens > num_tokens) {
    return InvalidArgument("num_prompt_tokens: expected 1 to {}, got {}", num_tokens,
                           opened.num_prompt_tokens);
  }
  if (num_tokens > limits_.max_model_len) {
    return InvalidArgument("tokens: expected at most {} of one slot, got {}", limits_.max_model_len,
                           num_tokens);
  }
  RETURN_IF_ERROR(CheckTokens(opened.tokens, limits_.vocabulary));
  RETURN_IF_ERROR(CheckBlocks(opened.blocks, next.num_blocks));
  RETURN_IF_ERROR(Annotate(CheckSampling(opened.sampling, limits_), "sampling"));
  next.num_blocks += static_cast<int32_t>(opened.blocks.size());
  next.num_positions =
      MaxFirstPosition(next.num_blocks, static_cast<int32_t>(num_tokens), limits_.tokens_per_block);
  *slot = next;
  return absl::OkStatus();
}

absl::Status PlanValidator::Checker::CheckAppend(const SlotAppend& append) {
  ASSIGN_OR_RETURN(SlotView * slot, FindOpen(append.slot));
  if (slot->has_append) return InvalidArgument("slot {} is appended to twice", append.slot.value);
  slot->has_append = true;
  RETURN_IF_ERROR(CheckBlocks(append.blocks, slot->num_blocks));
  slot->num_blocks += static_cast<int32_t>(append.blocks.size());
  return absl::OkStatus();
}

// Copies may run in any order or together, so no block is written twice or both read and written.
absl::Status PlanValidator::Checker::CheckCopies() {
  std::vector<BlockUse>& uses = block_uses_;
  uses.clear();
  for (size_t i = 0; i < plan_->copies.size(); ++i) {
    const BlockCopy& copy = plan_->copies[i];
    for (const BlockId block : {copy.from, copy.to}) {
      if (block.value < 0 || block.value >= limits_.num_blocks) {
        return InvalidArgument("copies[{}]: expected blocks 0 to {}, got {}", i,
                               limits_.num_blocks - 1, block.value);
      }
    }
    uses.push_back({copy.from, false});
    uses.push_back({copy.to, true});
  }
  std::sort(uses.begin(), uses.end());
  for (size_t i = 1; i < uses.size(); ++i) {
    const bool written = uses[i].is_written || uses[i - 1].is_written;
    if (uses[i].block == uses[i - 1].block && written) {
      return InvalidArgument("copies: block {} is written and used by another copy",
                             uses[i].block.value);
    }
  }
  return absl::OkStatus();
}

absl::Status PlanValidator::Checker::CheckRow(const StepRow& row) {
  ASSIGN_OR_RETURN(SlotView * slot, FindOpen(row.slot));
  if (slot->has_row) return InvalidArgument("slot {} has two rows", row.slot.value);
  if (row.first_position < 0 || row.first_position > slot->num_positions) {
    return InvalidArgument("first_position: expected 0 to {}, got {}", slot->num_positions,
                           row.first_position);
  }
  const int64_t covered = std::min<int64_t>(int64_t{slot->num_blocks} * limits_.tokens_per_block,
                                            limits_.max_model_len);
  if (row.num_tokens < 1 || row.num_tokens > covered - row.first_position) {
    return InvalidArgument("num_tokens: expected 1 to {} from position {}, got {}",
                           covered - row.first_position, row.first_position, row.num_tokens);
  }
  if (row.num_tokens > std::ssize(plan_->tokens) - tokens_seen_) {
    return InvalidArgument("num_tokens: expected at most the {} tokens left in the plan, got {}",
                           std::ssize(plan_->tokens) - tokens_seen_, row.num_tokens);
  }
  RETURN_IF_ERROR(row.first_token.has_value() ? CheckSource(row, *slot)
                                              : CheckRowTokens(row, *slot));
  tokens_seen_ += row.num_tokens;
  slot->has_row = true;
  slot->num_positions = row.first_position + row.num_tokens;
  return absl::OkStatus();
}

absl::Status PlanValidator::Checker::CheckRowTokens(const StepRow& row,
                                                    const SlotView& slot) const {
  const int64_t num_shared = std::ssize(slot.shared_tokens);
  const int64_t num_known = num_shared + std::ssize(slot.own_tokens);
  for (int64_t i = 0; i < row.num_tokens; ++i) {
    const int64_t position = row.first_position + i;
    if (position >= num_known) break;
    const TokenId known = position < num_shared
                              ? slot.shared_tokens[static_cast<size_t>(position)]
                              : slot.own_tokens[static_cast<size_t>(position - num_shared)];
    const TokenId given = plan_->tokens[static_cast<size_t>(tokens_seen_ + i)];
    if (given != known) {
      return InvalidArgument("tokens[{}]: expected {}, as the slot was opened with, got {}",
                             tokens_seen_ + i, known, given);
    }
  }
  return absl::OkStatus();
}

absl::Status PlanValidator::Checker::CheckSource(const StepRow& row, const SlotView& slot) const {
  if (row.num_tokens != 1 || plan_->tokens[static_cast<size_t>(tokens_seen_)] != 0) {
    return InvalidArgument("first_token: expected a row of one placeholder 0, got {} tokens, {}",
                           row.num_tokens, plan_->tokens[static_cast<size_t>(tokens_seen_)]);
  }
  const SlotTable::Draw wanted{*row.first_token, row.first_position};
  if (!slot.last_draw.has_value() || *slot.last_draw != wanted) {
    return InvalidArgument(
        "first_token: sample {} of step {} is not the slot's draw for position {}",
        wanted.source.sample, wanted.source.step.value, wanted.position);
  }
  const int64_t age = plan_->id.value - wanted.source.step.value;
  if (age >= limits_.max_steps_in_flight) {
    return InvalidArgument("first_token: step {} is no longer in flight at step {}",
                           wanted.source.step.value, plan_->id.value);
  }
  return absl::OkStatus();
}

absl::Status PlanValidator::Checker::CheckSample(const Sample& sample) {
  ASSIGN_OR_RETURN(SlotView * slot, FindOpen(sample.slot));
  if (sample.token_index < 0 || sample.token_index >= std::ssize(plan_->tokens)) {
    return InvalidArgument("token_index: expected 0 to {}, got {}", std::ssize(plan_->tokens) - 1,
                           sample.token_index);
  }
  switch (sample.kind) {
    case Sample::Kind::kDraw:
      if (sample.target != 0) {
        return InvalidArgument("target: expected 0 of a draw, got {}", sample.target);
      }
      return CheckDraw(sample, *slot);
    case Sample::Kind::kScore:
    case Sample::Kind::kVerify:
      if (sample.target < 0 || sample.target >= limits_.vocabulary) {
        return InvalidArgument("target: expected 0 to {}, got {}", limits_.vocabulary - 1,
                               sample.target);
      }
      if (plan_->rows[static_cast<size_t>(finder_.RowOf(sample.token_index))].slot != sample.slot) {
        return InvalidArgument("token_index: expected a token of slot {}, got {}",
                               sample.slot.value, sample.token_index);
      }
      return absl::OkStatus();
  }
  return InvalidArgument("kind: expected a kind of sample, got {}", static_cast<int>(sample.kind));
}

absl::Status PlanValidator::Checker::CheckDraw(const Sample& sample, SlotView& slot) {
  if (slot.has_draw) return InvalidArgument("slot {} draws twice", sample.slot.value);
  const int32_t row_index = finder_.RowOf(sample.token_index);
  const StepRow& row = plan_->rows[static_cast<size_t>(row_index)];
  if (sample.token_index != finder_.FirstTokenOf(row_index) + row.num_tokens - 1) {
    return InvalidArgument("token_index: expected the last token of a row to draw from, got {}",
                           sample.token_index);
  }
  const int32_t position = row.first_position + row.num_tokens;
  if (row.slot != sample.slot) {
    ASSIGN_OR_RETURN(const SlotView* origin, Find(row.slot));
    const bool first_of_fork = slot.forked_from == origin->sequence && !slot.has_row &&
                               !slot.last_draw.has_value() && position == slot.num_prompt_tokens;
    if (!first_of_fork) {
      return InvalidArgument("token_index: slot {} may not draw from position {} of slot {}",
                             sample.slot.value, position - 1, row.slot.value);
    }
  }
  slot.has_draw = true;
  return absl::OkStatus();
}

PlanValidator::PlanValidator(const StepLimits& limits)
    : checker_(std::make_unique<Checker>(limits)) {}

PlanValidator::~PlanValidator() = default;

absl::Status PlanValidator::Check(const StepPlan& plan, const SlotTable& slots) {
  CHECK(slots.num_slots() == checker_->num_slots());
  absl::Status status = checker_->Run(plan, slots);
  if (status.ok()) return status;
  return Annotate(status, fmt::format("step {}", plan.id.value));
}

absl::Status Validate(const StepPlan& plan, const SlotTable& slots, const StepLimits& limits) {
  return PlanValidator(limits).Check(plan, slots);
}

}  // namespace polyreme::step
