#include "coordinator/sched/plan_builder.h"

#include <algorithm>
#include <utility>

namespace polyreme::sched {

void PlanBuilder::Start(StepId id, Epoch epoch, Budget budget, StepRecord* record) {
  plan_.id = id;
  plan_.epoch = epoch;
  plan_.opened.clear();
  plan_.appended.clear();
  plan_.closed.clear();
  plan_.copies.clear();
  plan_.rows.clear();
  plan_.tokens.clear();
  plan_.samples.clear();
  left_ = budget;
  record_ = record;
  record_->id = id;
  record_->num_samples = 0;
  record_->rows.clear();
}

int32_t PlanBuilder::RoomFor(const Sequence& sequence) const {
  if (left_.samples == 0) return 0;
  const int32_t room = std::min(sequence.num_to_plan(), left_.tokens);
  // Each position of a scored prompt is a sample of its own; other rows have at most the draw at
  // their end.
  const bool scores = sequence.num_score_planned() < sequence.num_prompt_tokens();
  return sequence.scores_prompt() && scores ? std::min(room, left_.samples) : room;
}

void PlanBuilder::Open(const Sequence& sequence) {
  step::SlotOpen& opened = plan_.opened.emplace_back();
  opened.slot = sequence.slot();
  opened.sequence = sequence.id();
  opened.tokens = sequence.tokens();
  opened.num_prompt_tokens = sequence.num_prompt_tokens();
  opened.sampling = sequence.sampling();
}

void PlanBuilder::AddRow(Sequence& sequence, int32_t num_tokens) {
  SendBlocks(sequence);
  RowRecord& row = record_->rows.emplace_back();
  row.sequence = &sequence;
  const int32_t end = sequence.num_planned() + num_tokens;
  row.ends_prompt =
      sequence.num_planned() < sequence.num_prompt_tokens() && end >= sequence.num_prompt_tokens();
  AddTokens(sequence, num_tokens);
  AddSamples(sequence, num_tokens, row);
  std::optional<int32_t> draw;
  if (row.draws) draw = row.first_sample + row.num_scores;
  sequence.PlanRow(num_tokens, plan_.id, draw);
}

void PlanBuilder::SendBlocks(Sequence& sequence) {
  const absl::Span<const BlockId> blocks = sequence.unsent_blocks();
  if (blocks.empty()) return;
  const bool opened_here = !plan_.opened.empty() && plan_.opened.back().sequence == sequence.id();
  std::vector<BlockId>& sent =
      opened_here ? plan_.opened.back().blocks
                  : plan_.appended.emplace_back(step::SlotAppend{sequence.slot(), {}}).blocks;
  sent.assign(blocks.begin(), blocks.end());
  sequence.MarkBlocksSent();
}

void PlanBuilder::AddTokens(const Sequence& sequence, int32_t num_tokens) {
  const int32_t first = sequence.num_planned();
  step::StepRow& row = plan_.rows.emplace_back();
  row.slot = sequence.slot();
  row.first_position = first;
  row.num_tokens = num_tokens;
  const std::vector<TokenId>& tokens = sequence.tokens();
  if (first == sequence.num_tokens()) {
    row.first_token = sequence.last_draw();
    plan_.tokens.push_back(0);
  } else {
    plan_.tokens.insert(plan_.tokens.end(), tokens.begin() + first,
                        tokens.begin() + first + num_tokens);
  }
  left_.tokens -= num_tokens;
}

void PlanBuilder::AddSamples(const Sequence& sequence, int32_t num_tokens, RowRecord& row) {
  using Kind = step::Sample::Kind;
  const int32_t first = sequence.num_planned();
  const int32_t first_index = static_cast<int32_t>(plan_.tokens.size()) - num_tokens;
  row.first_sample = static_cast<int32_t>(plan_.samples.size());
  if (sequence.scores_prompt()) {
    // The row at one position scores the token at the next.
    const int32_t last = std::min(first + num_tokens, sequence.num_prompt_tokens() - 1);
    for (int32_t i = std::max(first + 1, sequence.num_score_planned()); i <= last; ++i) {
      plan_.samples.push_back({Kind::kScore, sequence.slot(), first_index + i - 1 - first,
                               sequence.tokens()[static_cast<size_t>(i)]});
      ++row.num_scores;
    }
  }
  if (sequence.DrawsAfter(num_tokens)) {
    row.draws = true;
    plan_.samples.push_back({Kind::kDraw, sequence.slot(), first_index + num_tokens - 1, 0});
  }
  const int32_t added = static_cast<int32_t>(plan_.samples.size()) - row.first_sample;
  left_.samples -= added;
  record_->num_samples += added;
}

const step::StepPlan& PlanBuilder::Finish(std::vector<SlotId>& closed) {
  std::swap(plan_.closed, closed);
  return plan_;
}

}  // namespace polyreme::sched
