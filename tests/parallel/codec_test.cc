// Plans and results survive the wire, and nothing that is not one of them gets in.
#include "parallel/wire/codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parallel/base/limits.h"
#include "proto/step.pb.h"
#include "tests/parallel/random_plans.h"

namespace polyreme::wire {
namespace {

namespace pb = ::polyreme::cluster::v1;
using ::testing::HasSubstr;

TEST(Codec, PlansAndResultsAreTheSameAfterARoundTrip) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    step::RandomPlans plans(seed);
    for (int i = 0; i < 40; ++i) {
      const step::StepPlan plan = plans.Next();
      const absl::StatusOr<step::StepPlan> decoded = DecodePlan(EncodePlan(plan));
      ASSERT_TRUE(decoded.ok()) << decoded.status();
      ASSERT_EQ(*decoded, plan);
      const step::StepResult result = step::RandomResult(plans.random(), plan, plans.limits());
      const absl::StatusOr<step::StepResult> answered = DecodeResult(EncodeResult(result));
      ASSERT_TRUE(answered.ok()) << answered.status();
      ASSERT_EQ(*answered, result);
    }
  }
}

TEST(Codec, ADecodeStepOf256SequencesFitsAFewKilobytes) {
  step::StepPlan plan{.id = StepId{100000}, .epoch = Epoch{3}};
  for (int32_t i = 0; i < 256; ++i) {
    plan.rows.push_back({SlotId{i}, 32000 + i, 1, step::TokenSource{StepId{99999}, i}});
    plan.tokens.push_back(0);
    plan.samples.push_back({step::Sample::Kind::kDraw, SlotId{i}, i, 0});
  }
  EXPECT_LT(EncodePlan(plan).size(), 6000u);
}

// Bytes changed, cut off and invented: an error or a value, never a crash, and what is accepted can
// be sent again.
TEST(Codec, GarbageIsAnErrorOrAValue) {
  int refused = 0;
  int accepted = 0;
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    step::RandomPlans plans(seed);
    std::mt19937_64& random = plans.random();
    for (int i = 0; i < 60; ++i) {
      const step::StepPlan plan = plans.Next();
      std::string bytes = EncodePlan(plan);
      const std::string results = EncodeResult(step::RandomResult(random, plan, plans.limits()));
      if (random() % 2 == 0) bytes = results;
      for (uint64_t change = random() % 4; change > 0 && !bytes.empty(); --change) {
        bytes[random() % bytes.size()] = static_cast<char>(random());
      }
      if (random() % 4 == 0) bytes.resize(random() % (bytes.size() + 1));
      const absl::StatusOr<step::StepPlan> as_plan = DecodePlan(bytes);
      const absl::StatusOr<step::StepResult> as_result = DecodeResult(bytes);
      if (as_plan.ok()) {
        EXPECT_TRUE(DecodePlan(EncodePlan(*as_plan)).ok());
        // Whatever it says, asking whether it is legal is safe.
        const absl::Status legal = step::Validate(*as_plan, plans.table(), plans.limits());
        EXPECT_TRUE(legal.ok() || legal.code() == absl::StatusCode::kInvalidArgument);
      }
      if (as_result.ok()) {
        EXPECT_TRUE(DecodeResult(EncodeResult(*as_result)).ok());
      }
      refused += (as_plan.ok() ? 0 : 1) + (as_result.ok() ? 0 : 1);
      accepted += (as_plan.ok() ? 1 : 0) + (as_result.ok() ? 1 : 0);
    }
  }
  EXPECT_GT(refused, 500);
  EXPECT_GT(accepted, 500);
}

TEST(Codec, ColumnsAgreeInLength) {
  pb::StepPlan plan;
  plan.mutable_rows()->add_slots(1);
  EXPECT_THAT(Message(DecodePlan(plan.SerializeAsString()).status()),
              HasSubstr("step plan: rows: expected columns of 1 entries, got one of 0"));
  plan.Clear();
  plan.add_copies_from(1);
  EXPECT_THAT(Message(DecodePlan(plan.SerializeAsString()).status()), HasSubstr("copies"));
  pb::StepResult result;
  result.mutable_samples()->add_tokens(4);
  EXPECT_THAT(Message(DecodeResult(result.SerializeAsString()).status()),
              HasSubstr("step result: samples: expected columns of 1 entries"));
}

TEST(Codec, KindsAndSourcesAreInRange) {
  pb::StepPlan plan;
  pb::Samples& samples = *plan.mutable_samples();
  samples.add_kinds(3);
  samples.add_slots(0);
  samples.add_token_indices(0);
  samples.add_targets(0);
  EXPECT_THAT(Message(DecodePlan(plan.SerializeAsString()).status()),
              HasSubstr("samples[0]: kind: expected 0 to 2, got 3"));
  plan.Clear();
  plan.mutable_rows()->add_source_rows(0);
  plan.mutable_rows()->add_source_steps(0);
  plan.mutable_rows()->add_source_samples(0);
  EXPECT_THAT(Message(DecodePlan(plan.SerializeAsString()).status()),
              HasSubstr("sources[0]: expected ascending rows below 0, got 0"));
}

TEST(Codec, MoreTopTokensThanThereAreIsRefused) {
  pb::StepResult result;
  pb::SampleResults& samples = *result.mutable_samples();
  samples.add_tokens(1);
  samples.add_finite(true);
  samples.add_logprobs(-1);
  samples.add_ranks(1);
  samples.add_num_top(2);
  samples.add_top_tokens(1);
  samples.add_top_logprobs(-1);
  EXPECT_THAT(Message(DecodeResult(result.SerializeAsString()).status()),
              HasSubstr("num_top: expected 0 to 1, got 2"));
}

TEST(Codec, TooManyEntriesAreRefused) {
  pb::StepPlan plan;
  for (int i = 0; i <= limits::kMaxSequences; ++i) plan.add_closed(i);
  EXPECT_THAT(Message(DecodePlan(plan.SerializeAsString()).status()),
              HasSubstr("closed: expected at most 4096 entries, got 4097"));
}

}  // namespace
}  // namespace polyreme::wire
