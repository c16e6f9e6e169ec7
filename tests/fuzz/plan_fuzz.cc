// Plans and results as they come over the wire: what decodes has one encoding, and a receiver's
// checks stand any of it.
#include "parallel/step/slot_table.h"
#include "parallel/wire/codec.h"
#include "tests/fuzz/fuzz.h"

namespace polyreme::wire {

namespace {

constexpr step::StepLimits kLimits{.num_slots = 8,
                                   .num_blocks = 64,
                                   .tokens_per_block = 4,
                                   .max_step_tokens = 64,
                                   .max_step_samples = 16,
                                   .max_model_len = 128,
                                   .vocabulary = 100,
                                   .max_steps_in_flight = 4};

void TryPlan(std::string_view bytes) {
  const absl::StatusOr<step::StepPlan> plan = wire::DecodePlan(bytes);
  if (!plan.ok()) return fuzz::CheckRefusal(plan.status());
  // Compared as bytes: a NaN is not equal to itself.
  const std::string encoded = wire::EncodePlan(*plan);
  const absl::StatusOr<step::StepPlan> again = wire::DecodePlan(encoded);
  CHECK(again.ok(), "{}", Message(again.status()));
  CHECK(wire::EncodePlan(*again) == encoded);
  CHECK(!step::Describe(*plan).empty());
  step::SlotTable slots(kLimits);
  const absl::Status valid = step::Validate(*plan, slots, kLimits);
  if (!valid.ok()) return fuzz::CheckRefusal(valid);
  slots.Apply(*plan);
  CHECK(slots.last_step() == plan->id);
}

void TryResult(std::string_view bytes) {
  const absl::StatusOr<step::StepResult> result = wire::DecodeResult(bytes);
  if (!result.ok()) return fuzz::CheckRefusal(result.status());
  const std::string encoded = wire::EncodeResult(*result);
  const absl::StatusOr<step::StepResult> again = wire::DecodeResult(encoded);
  CHECK(again.ok(), "{}", Message(again.status()));
  CHECK(wire::EncodeResult(*again) == encoded);
  const absl::Status valid = step::ValidateResult(*result, step::StepPlan{});
  if (!valid.ok()) fuzz::CheckRefusal(valid);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  TryPlan(fuzz::AsText(data, size));
  TryResult(fuzz::AsText(data, size));
  return 0;
}

}  // namespace polyreme::wire
