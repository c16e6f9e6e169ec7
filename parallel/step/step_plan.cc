#include "parallel/step/step_plan.h"

#include <algorithm>

#include "parallel/base/limits.h"

namespace polyreme::step {
namespace {

absl::Status CheckSample(const SampleResult& result, const Sample& asked) {
  if (result.token < 0) return InvalidArgument("expected a token, got {}", result.token);
  if (result.finite && asked.kind != Sample::Kind::kDraw && result.token != asked.target) {
    return InvalidArgument("expected the target {}, got token {}", asked.target, result.token);
  }
  if (std::ssize(result.top) > limits::kMaxLogprobs) {
    return InvalidArgument("expected at most {} top tokens, got {}", limits::kMaxLogprobs,
                           result.top.size());
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateResult(const StepResult& result, const StepPlan& plan) {
  if (result.id != plan.id || result.epoch != plan.epoch) {
    return InvalidArgument("expected the result of step {} epoch {}, got step {} epoch {}",
                           plan.id.value, plan.epoch.value, result.id.value, result.epoch.value);
  }
  if (result.samples.size() != plan.samples.size()) {
    return InvalidArgument("step {}: expected {} samples, got {}", plan.id.value,
                           plan.samples.size(), result.samples.size());
  }
  for (size_t i = 0; i < plan.samples.size(); ++i) {
    RETURN_IF_ERROR(Annotate(CheckSample(result.samples[i], plan.samples[i]),
                             fmt::format("step {}: samples[{}]", plan.id.value, i)));
  }
  return absl::OkStatus();
}

void RowFinder::Reset(const StepPlan& plan) {
  plan_ = &plan;
  begins_.resize(plan.rows.size());
  int32_t begin = 0;
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    begins_[i] = begin;
    begin += plan.rows[i].num_tokens;
  }
  CHECK(begin == std::ssize(plan.tokens), "rows of {} tokens, plan of {}", begin,
        plan.tokens.size());
}

int32_t RowFinder::RowOf(int32_t token_index) const {
  CHECK(token_index >= 0 && token_index < std::ssize(plan_->tokens));
  const auto after = std::upper_bound(begins_.begin(), begins_.end(), token_index);
  return static_cast<int32_t>(after - begins_.begin()) - 1;
}

int32_t RowFinder::PositionOf(int32_t token_index) const {
  const int32_t row = RowOf(token_index);
  return plan_->rows[static_cast<size_t>(row)].first_position + token_index - FirstTokenOf(row);
}

std::string Describe(const StepPlan& plan) {
  return fmt::format("step {} epoch {}: {} rows, {} tokens, {} samples, +{} -{} slots",
                     plan.id.value, plan.epoch.value, plan.rows.size(), plan.tokens.size(),
                     plan.samples.size(), plan.opened.size(), plan.closed.size());
}

}  // namespace polyreme::step
