// Exact cases of Validate, SlotTable and ValidateResult.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "parallel/step/slot_table.h"
#include "parallel/step/step_plan.h"

namespace polyreme::step {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kPrompt = 6;

StepLimits Limits() {
  return {.num_slots = 4,
          .num_blocks = 10,
          .tokens_per_block = 4,
          .max_step_tokens = 16,
          .max_step_samples = 4,
          .max_model_len = 12,
          .vocabulary = 100,
          .max_steps_in_flight = 2};
}

// Slot 0 with tokens 10..15 in blocks 7, 8: its whole prompt and a draw.
StepPlan FirstPlan() {
  StepPlan plan{.id = StepId{0}, .epoch = Epoch{1}};
  plan.opened.push_back({.slot = SlotId{0},
                         .fork_of = {},
                         .sequence = SequenceId{5},
                         .tokens = {10, 11, 12, 13, 14, 15},
                         .num_prompt_tokens = kPrompt,
                         .blocks = {BlockId{7}, BlockId{8}},
                         .sampling = {}});
  plan.rows.push_back({SlotId{0}, 0, kPrompt, {}});
  plan.tokens = {10, 11, 12, 13, 14, 15};
  plan.samples.push_back({Sample::Kind::kDraw, SlotId{0}, kPrompt - 1, 0});
  return plan;
}

// The token drawn by FirstPlan, fed back.
StepPlan SecondPlan() {
  StepPlan plan{.id = StepId{1}, .epoch = Epoch{1}};
  plan.rows.push_back({SlotId{0}, kPrompt, 1, TokenSource{StepId{0}, 0}});
  plan.tokens = {0};
  plan.samples.push_back({Sample::Kind::kDraw, SlotId{0}, 0, 0});
  return plan;
}

class StepTest : public ::testing::Test {
 protected:
  void Apply(const StepPlan& plan) {
    ASSERT_TRUE(Validate(plan, table_, limits_).ok()) << Validate(plan, table_, limits_);
    table_.Apply(plan);
  }
  std::string Refusal(const StepPlan& plan) const {
    const absl::Status status = Validate(plan, table_, limits_);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << Describe(plan);
    return Message(status);
  }

  const StepLimits limits_ = Limits();
  SlotTable table_{limits_};
};

TEST_F(StepTest, APlanOpensASlotAndMovesItsPositions) {
  Apply(FirstPlan());
  EXPECT_TRUE(table_.IsOpen(SlotId{0}));
  EXPECT_EQ(table_.num_open(), 1);
  EXPECT_EQ(table_.last_step(), StepId{0});
  EXPECT_EQ(table_.at(SlotId{0}).num_positions, kPrompt);
  EXPECT_EQ(table_.at(SlotId{0}).last_draw, (SlotTable::Draw{TokenSource{StepId{0}, 0}, kPrompt}));
}

TEST_F(StepTest, AFedBackTokenIsTheLatestDrawOfAStepInFlight) {
  Apply(FirstPlan());
  Apply(SecondPlan());
  StepPlan third = SecondPlan();
  third.id = StepId{2};
  third.rows[0].first_position = kPrompt + 1;
  EXPECT_THAT(Refusal(third), HasSubstr("step 2: rows[0]: first_token: sample 0 of step 0"));
  third.rows[0].first_token->step = StepId{1};
  Apply(third);

  StepPlan skip{.id = StepId{3}, .epoch = Epoch{1}};
  Apply(skip);
  StepPlan late = SecondPlan();
  late.id = StepId{4};
  late.rows[0].first_position = kPrompt + 2;
  late.rows[0].first_token->step = StepId{2};
  late.appended.push_back({SlotId{0}, {BlockId{9}}});
  EXPECT_THAT(Refusal(late), HasSubstr("step 2 is no longer in flight at step 4"));
  late.rows[0].first_token.reset();  // by now the coordinator knows it
  Apply(late);
}

TEST_F(StepTest, StepsComeInOrderWithoutGaps) {
  StepPlan plan = FirstPlan();
  plan.id = StepId{1};
  EXPECT_THAT(Refusal(plan), HasSubstr("id: expected 0, got 1"));
  Apply(FirstPlan());
  EXPECT_THAT(Refusal(FirstPlan()), HasSubstr("id: expected 1, got 0"));
}

TEST_F(StepTest, ASlotMayBeClosedAndOpenedInOnePlan) {
  Apply(FirstPlan());
  StepPlan plan = FirstPlan();
  plan.id = StepId{1};
  EXPECT_THAT(Refusal(plan), HasSubstr("opened[0]: slot 0 is open already"));
  plan.closed = {SlotId{0}};
  plan.opened[0].sequence = SequenceId{6};
  Apply(plan);
  EXPECT_EQ(table_.at(SlotId{0}).sequence, SequenceId{6});
  EXPECT_EQ(table_.at(SlotId{0}).blocks.size(), 2u);
  EXPECT_EQ(table_.num_open(), 1);
}

TEST_F(StepTest, AReopenedSlotForgetsTheDrawsOfItsFormerLife) {
  Apply(FirstPlan());
  StepPlan plan = SecondPlan();
  plan.closed = {SlotId{0}};
  plan.opened = FirstPlan().opened;
  plan.rows[0].first_position = 5;
  EXPECT_THAT(Refusal(plan), HasSubstr("is not the slot's draw for position 5"));
}

TEST_F(StepTest, RowsStartNoLaterThanWhatIsWritten) {
  StepPlan first = FirstPlan();
  first.rows[0].num_tokens = 2;
  first.tokens = {10, 11};
  first.samples.clear();
  Apply(first);
  StepPlan next{.id = StepId{1}, .epoch = Epoch{1}};
  next.rows.push_back({SlotId{0}, 3, 1, {}});
  next.tokens = {13};
  EXPECT_THAT(Refusal(next), HasSubstr("first_position: expected 0 to 2, got 3"));
  next.rows[0].first_position = 1;  // computed once more
  next.tokens = {11};
  EXPECT_TRUE(Validate(next, table_, limits_).ok());
}

TEST_F(StepTest, TheFirstRowMayStartBehindACachedPrefix) {
  StepPlan plan = FirstPlan();
  plan.rows[0] = {SlotId{0}, 5, 1, {}};
  plan.tokens = {15};
  plan.samples[0].token_index = 0;
  EXPECT_TRUE(Validate(plan, table_, limits_).ok());
  plan.opened[0].blocks.pop_back();  // four positions are covered, the rest comes as an append
  plan.appended.push_back({SlotId{0}, {BlockId{8}}});
  EXPECT_THAT(Refusal(plan), HasSubstr("first_position: expected 0 to 4, got 5"));
}

TEST_F(StepTest, RowsAreCoveredByBlocksAndByTheLongestSequence) {
  StepPlan plan = FirstPlan();
  plan.opened[0].blocks.pop_back();
  EXPECT_THAT(Refusal(plan), HasSubstr("num_tokens: expected 1 to 4 from position 0, got 6"));
  plan.appended.push_back({SlotId{0}, {BlockId{1}, BlockId{2}, BlockId{3}}});
  EXPECT_THAT(Refusal(plan), HasSubstr("blocks: expected at most 3 of one slot, got 1 + 3"));
}

TEST_F(StepTest, RowTokensAreThoseTheSlotWasOpenedWith) {
  StepPlan plan = FirstPlan();
  plan.tokens[3] = 99;
  EXPECT_THAT(Refusal(plan),
              HasSubstr("tokens[3]: expected 13, as the slot was opened with, got 99"));
}

TEST_F(StepTest, ASlotHasOneRowAndOneDraw) {
  StepPlan plan = FirstPlan();
  plan.rows.push_back({SlotId{0}, 0, 1, {}});
  plan.tokens.push_back(10);
  EXPECT_THAT(Refusal(plan), HasSubstr("rows[1]: slot 0 has two rows"));
  plan = FirstPlan();
  plan.samples.push_back(plan.samples[0]);
  EXPECT_THAT(Refusal(plan), HasSubstr("samples[1]: slot 0 draws twice"));
}

TEST_F(StepTest, DrawsAreFromTheLastTokenOfARowAndScoresFromAny) {
  StepPlan plan = FirstPlan();
  plan.samples[0].token_index = 2;
  EXPECT_THAT(Refusal(plan), HasSubstr("expected the last token of a row to draw from, got 2"));
  plan.samples[0] = {Sample::Kind::kScore, SlotId{0}, 2, 13};
  EXPECT_TRUE(Validate(plan, table_, limits_).ok());
  plan.samples[0].target = 100;
  EXPECT_THAT(Refusal(plan), HasSubstr("target: expected 0 to 99, got 100"));
}

// n = 2 of a prompt of six: the fork shares the first block, draws from the origin's row, and gets
// a copy of the block that the prompt fills in part.
TEST_F(StepTest, AForkDrawsFromTheRowOfItsOriginAndGoesOnAlone) {
  StepPlan plan = FirstPlan();
  plan.opened.push_back({.slot = SlotId{2},
                         .fork_of = SlotId{0},
                         .sequence = SequenceId{6},
                         .tokens = {},
                         .num_prompt_tokens = kPrompt,
                         .blocks = {},
                         .sampling = {.choice = 1}});
  plan.samples.push_back({Sample::Kind::kDraw, SlotId{2}, kPrompt - 1, 0});
  Apply(plan);
  EXPECT_EQ(table_.at(SlotId{2}).blocks, (std::vector<BlockId>{BlockId{7}}));
  EXPECT_EQ(table_.at(SlotId{2}).tokens, table_.at(SlotId{0}).tokens);

  StepPlan next = SecondPlan();
  next.appended.push_back({SlotId{2}, {BlockId{9}}});
  next.copies.push_back({BlockId{8}, BlockId{9}});
  next.rows.push_back({SlotId{2}, kPrompt, 1, TokenSource{StepId{0}, 1}});
  next.tokens.push_back(0);
  next.samples.push_back({Sample::Kind::kDraw, SlotId{2}, 1, 0});
  Apply(next);
  EXPECT_EQ(table_.at(SlotId{2}).num_positions, kPrompt + 1);
}

TEST_F(StepTest, OnlyAForkMayDrawFromAnotherSlotsRow) {
  StepPlan plan = FirstPlan();
  plan.opened.push_back(plan.opened[0]);
  plan.opened[1].slot = SlotId{1};
  plan.samples[0].slot = SlotId{1};
  EXPECT_THAT(Refusal(plan), HasSubstr("slot 1 may not draw from position 5 of slot 0"));
}

TEST_F(StepTest, CopiesDoNotDependOnTheirOrder) {
  StepPlan plan = FirstPlan();
  plan.copies = {{BlockId{1}, BlockId{2}}, {BlockId{1}, BlockId{3}}};
  EXPECT_TRUE(Validate(plan, table_, limits_).ok());
  plan.copies = {{BlockId{1}, BlockId{2}}, {BlockId{2}, BlockId{3}}};
  EXPECT_THAT(Refusal(plan), HasSubstr("block 2 is written and used by another copy"));
  plan.copies = {{BlockId{1}, BlockId{1}}};
  EXPECT_THAT(Refusal(plan), HasSubstr("block 1 is written and used by another copy"));
}

TEST_F(StepTest, SamplingIsCheckedAgain) {
  StepPlan plan = FirstPlan();
  plan.opened[0].sampling.temperature = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(Refusal(plan), HasSubstr("opened[0]: sampling: temperature: expected at least 0"));
  plan = FirstPlan();
  plan.opened[0].sampling.top_p = 0;
  EXPECT_THAT(Refusal(plan), HasSubstr("top_p: expected more than 0 and at most 1, got 0"));
  plan = FirstPlan();
  plan.opened[0].sampling.stop_tokens = {100};
  EXPECT_THAT(Refusal(plan), HasSubstr("stop_tokens: tokens[0]: expected 0 to 99, got 100"));
}

TEST(ValidateResult, AnswersItsPlan) {
  const StepPlan plan = FirstPlan();
  StepResult result{.id = StepId{0}, .epoch = Epoch{1}, .samples = {{.token = 3}}, .timings = {}};
  EXPECT_TRUE(ValidateResult(result, plan).ok());
  result.samples.clear();
  EXPECT_THAT(Message(ValidateResult(result, plan)), HasSubstr("expected 1 samples, got 0"));
  result.epoch = Epoch{2};
  EXPECT_THAT(Message(ValidateResult(result, plan)),
              HasSubstr("expected the result of step 0 epoch 1"));
}

TEST(Describe, IsOneLine) {
  EXPECT_EQ(Describe(FirstPlan()), "step 0 epoch 1: 1 rows, 6 tokens, 1 samples, +1 -0 slots");
}

}  // namespace
}  // namespace polyreme::step
