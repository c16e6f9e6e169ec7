#include "tests/coordinator/scripted_link.h"

#include <utility>

#include "parallel/base/clock.h"

namespace polyreme::engine {

ScriptedLink::ScriptedLink(const step::StepLimits& limits) : limits_(limits), slots_(limits) {}

absl::Status ScriptedLink::Submit(const step::StepPlan& plan) {
  RETURN_IF_ERROR(step::Validate(plan, slots_, limits_));
  slots_.Apply(plan);
  step::StepResult& result = answers_.emplace_back();
  result.id = plan.id;
  result.epoch = plan.epoch;
  result.timings = {{Rank{0}, absl::Milliseconds(3), absl::Milliseconds(1)}};
  for (const step::StepRow& row : plan.rows) {
    if (killers_.contains(slots_.at(row.slot).tokens.front())) killed_ = true;
  }
  std::vector<int32_t> position_after;
  for (const step::StepRow& row : plan.rows) {
    for (int32_t i = 0; i < row.num_tokens; ++i)
      position_after.push_back(row.first_position + i + 1);
  }
  for (const step::Sample& sample : plan.samples) {
    result.samples.push_back(
        Answer(sample, position_after[static_cast<size_t>(sample.token_index)]));
  }
  return absl::OkStatus();
}

step::SampleResult ScriptedLink::Answer(const step::Sample& sample, int32_t position) const {
  const step::SlotTable::Slot& slot = slots_.at(sample.slot);
  step::SampleResult result;
  result.logprob = -static_cast<float>(position);
  result.rank = 1;
  for (int32_t i = 0; i < slot.sampling.num_logprobs; ++i)
    result.top.push_back({i, -0.5f * static_cast<float>(i)});
  if (sample.kind != step::Sample::Kind::kDraw) {
    result.token = sample.target;
    return result;
  }
  const TokenId key = slot.tokens.front();
  const int32_t index = position - slot.num_prompt_tokens;
  if (const auto found = poisoned_.find(key); found != poisoned_.end() && found->second == index) {
    result.finite = false;
    return result;
  }
  const auto found = texts_.find(key);
  const std::string text = found == texts_.end() ? "" : found->second;
  result.token =
      index < std::ssize(text) ? static_cast<uint8_t>(text[static_cast<size_t>(index)]) : kEnd;
  return result;
}

absl::StatusOr<step::StepResult> ScriptedLink::Await(StepId step, absl::Time deadline) {
  std::unique_lock lock(mutex_);
  if (step >= hold_at_) {
    is_held_ = true;
    changed_.notify_all();
  }
  const bool released = changed_.wait_until(lock, ToSteady(deadline),
                                            [&] { return step < hold_at_ || num_aborts_ > 0; });
  if (!released) return DeadlineExceeded("rank 0 has not answered");
  if (num_aborts_ > 0) return Unavailable("aborted");
  if (step >= fail_at_) return failure_;
  if (killed_) return Unavailable("rank 0 was killed");
  CHECK(!answers_.empty() && answers_.front().id == step);
  step::StepResult result = std::move(answers_.front());
  answers_.pop_front();
  return result;
}

void ScriptedLink::Abort(Epoch) noexcept {
  const std::lock_guard lock(mutex_);
  ++num_aborts_;
  changed_.notify_all();
}

absl::StatusOr<Epoch> ScriptedLink::Recover(const absl::Status& why) {
  if (recoveries_left_-- <= 0) return why;
  Restart();
  return Epoch{++epoch_};
}

void ScriptedLink::FailAt(StepId step, absl::Status why) {
  const std::lock_guard lock(mutex_);
  fail_at_ = step;
  failure_ = std::move(why);
}

void ScriptedLink::HoldAt(StepId step) {
  const std::lock_guard lock(mutex_);
  hold_at_ = step;
}

void ScriptedLink::Release() {
  const std::lock_guard lock(mutex_);
  hold_at_ = StepId{INT64_MAX};
  changed_.notify_all();
}

void ScriptedLink::WaitUntilHeld() const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return is_held_; });
}

int ScriptedLink::num_aborts() const {
  const std::lock_guard lock(mutex_);
  return num_aborts_;
}

void ScriptedLink::Restart() {
  const std::lock_guard lock(mutex_);
  slots_ = step::SlotTable(limits_);
  answers_.clear();
  killed_ = false;
  fail_at_ = hold_at_ = StepId{INT64_MAX};
  num_aborts_ = 0;
}

}  // namespace polyreme::engine
