// Plans and results as bytes (proto/step.proto), and back.
//
// Decoding trusts nothing: columns must agree in length, kinds must exist, and counts stay within
// limits.h, so that what comes out is a plain value of bounded size. Whether a plan is legal is for
// step::Validate, which every receiver asks. Pure; any thread.
#pragma once

#include <string>
#include <string_view>

#include "parallel/base/status.h"
#include "parallel/step/step_plan.h"

namespace polyreme::wire {

std::string EncodePlan(const step::StepPlan& plan);
// InvalidArgument names the field.
absl::StatusOr<step::StepPlan> DecodePlan(std::string_view bytes);

std::string EncodeResult(const step::StepResult& result);
// InvalidArgument names the field.
absl::StatusOr<step::StepResult> DecodeResult(std::string_view bytes);

}  // namespace polyreme::wire
