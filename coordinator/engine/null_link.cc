#include "coordinator/engine/null_link.h"

#include <utility>

namespace polyreme::engine {

NullLink::NullLink(const step::StepLimits& limits) : vocabulary_(limits.vocabulary) {
  sequence_of_slot_.resize(static_cast<size_t>(limits.num_slots));
}

TokenId NullLink::DrawAt(SequenceId sequence, int32_t position, int32_t vocabulary) {
  uint64_t h = static_cast<uint64_t>(sequence.value) * 0x9e3779b97f4a7c15u +
               static_cast<uint64_t>(position);
  h = (h ^ (h >> 33)) * 0xff51afd7ed558ccdu;
  h ^= h >> 33;
  return static_cast<TokenId>(h % static_cast<uint64_t>(vocabulary));
}

absl::Status NullLink::Submit(const step::StepPlan& plan) {
  if (aborted_) return Unavailable("the epoch was aborted");
  for (const step::SlotOpen& opened : plan.opened) {
    sequence_of_slot_[static_cast<size_t>(opened.slot.value)] = opened.sequence;
  }
  step::StepResult& answer = answers_.emplace_back();
  answer.id = plan.id;
  answer.epoch = plan.epoch;
  answer.samples.reserve(plan.samples.size());
  // Samples lie in the order of the rows' tokens.
  size_t row = 0;
  int32_t row_begin = 0;
  for (const step::Sample& sample : plan.samples) {
    while (sample.token_index >= row_begin + plan.rows[row].num_tokens) {
      row_begin += plan.rows[row].num_tokens;
      ++row;
    }
    const int32_t position = plan.rows[row].first_position + sample.token_index - row_begin + 1;
    step::SampleResult& result = answer.samples.emplace_back();
    result.token = sample.kind == step::Sample::Kind::kDraw
                       ? DrawAt(sequence_of_slot_[static_cast<size_t>(sample.slot.value)], position,
                                vocabulary_)
                       : sample.target;
    result.rank = 1;
  }
  return absl::OkStatus();
}

absl::StatusOr<step::StepResult> NullLink::Await(StepId step, absl::Time) {
  if (aborted_) return Unavailable("the epoch was aborted");
  if (answers_.empty() || answers_.front().id != step) {
    return Internal("step {} is not the oldest in flight", step.value);
  }
  step::StepResult answer = std::move(answers_.front());
  answers_.pop_front();
  return answer;
}

void NullLink::Abort(Epoch) noexcept { aborted_ = true; }

}  // namespace polyreme::engine
