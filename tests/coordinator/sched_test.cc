// The parts of the scheduler: blocks, sequences, cohorts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/sched/block_allocator.h"
#include "coordinator/sched/cohorts.h"
#include "coordinator/sched/sequence.h"

namespace polyreme::sched {
namespace {

using ::testing::ElementsAre;

TEST(BlockAllocator, ABlockIsFreeOnceItsLastReferenceIsReleased) {
  BlockAllocator blocks(2, 16);
  EXPECT_EQ(blocks.Take(), BlockId{0});
  EXPECT_EQ(blocks.Take(), BlockId{1});
  EXPECT_EQ(blocks.Take(), std::nullopt);
  blocks.Share(BlockId{1});
  blocks.Release(BlockId{1});
  EXPECT_EQ(blocks.num_free(), 0);
  blocks.Release(BlockId{1});
  EXPECT_EQ(blocks.num_free(), 1);
  EXPECT_EQ(blocks.Take(), BlockId{1});
}

TEST(BlockAllocator, CountsTheBlocksThatTokensNeed) {
  const BlockAllocator blocks(4, 16);
  EXPECT_EQ(blocks.BlocksFor(0), 0);
  EXPECT_EQ(blocks.BlocksFor(1), 1);
  EXPECT_EQ(blocks.BlocksFor(16), 1);
  EXPECT_EQ(blocks.BlocksFor(17), 2);
}

TEST(BlockAllocatorDeathTest, ReleasingAFreeBlockIsOurBug) {
  BlockAllocator blocks(2, 16);
  EXPECT_DEATH(blocks.Release(BlockId{0}), "block 0 is free");
  EXPECT_DEATH(blocks.Share(BlockId{1}), "block 1 is free");
}

Sequence MakeSequence(int64_t id, StopRules stop) {
  SequenceOptions options;
  options.id = SequenceId{id};
  options.prompt = {5, 6, 7};
  options.stop = std::move(stop);
  return Sequence(std::move(options));
}

// Commits `tokens` one after another; how each was judged.
std::vector<Finish> Draw(Sequence& sequence, const std::vector<TokenId>& tokens) {
  std::vector<Finish> judged;
  for (const TokenId token : tokens) {
    sequence.PlanRow(0, StepId{0}, 0);
    sequence.CommitRow();
    judged.push_back(sequence.CommitDraw(token));
  }
  return judged;
}

TEST(Sequence, EndsAtEndOfSequenceStopTokenOrLength) {
  const StopRules rules{
      .max_tokens = 3, .max_model_len = 100, .eos_tokens = {2}, .stop_tokens = {9}};
  Sequence a = MakeSequence(1, rules);
  EXPECT_THAT(Draw(a, {4, 2}), ElementsAre(Finish::kNone, Finish::kEndOfSequence));
  Sequence b = MakeSequence(1, rules);
  EXPECT_THAT(Draw(b, {9}), ElementsAre(Finish::kStopToken));
  Sequence c = MakeSequence(1, rules);
  EXPECT_THAT(Draw(c, {4, 4, 4}), ElementsAre(Finish::kNone, Finish::kNone, Finish::kLength));
  Sequence d = MakeSequence(1, rules);
  EXPECT_THAT(Draw(d, {4, 4, 2}),
              ElementsAre(Finish::kNone, Finish::kNone, Finish::kEndOfSequence));
}

TEST(Sequence, TheModelsLengthEndsItToo) {
  Sequence sequence = MakeSequence(1, {.max_tokens = 50, .max_model_len = 5});
  EXPECT_EQ(sequence.max_output_tokens(), 2);
  EXPECT_THAT(Draw(sequence, {2, 2}), ElementsAre(Finish::kNone, Finish::kLength));
}

TEST(Sequence, NoTokenEndsItBeforeMinTokens) {
  Sequence sequence = MakeSequence(1, {.max_tokens = 9,
                                       .min_tokens = 3,
                                       .max_model_len = 100,
                                       .eos_tokens = {2},
                                       .stop_tokens = {9}});
  EXPECT_THAT(Draw(sequence, {2, 9, 2}),
              ElementsAre(Finish::kNone, Finish::kNone, Finish::kEndOfSequence));
}

TEST(Sequence, ItsLastTokenIsNeverComputed) {
  EXPECT_EQ(MakeSequence(1, {.max_tokens = 4, .max_model_len = 100}).max_positions(), 6);
  EXPECT_EQ(MakeSequence(1, {.max_tokens = 1, .max_model_len = 100}).max_positions(), 3);
  EXPECT_EQ(MakeSequence(1, {.max_tokens = 0, .max_model_len = 100}).max_positions(), 3);
}

class CohortsTest : public ::testing::Test {
 protected:
  Sequence* Make(int64_t arrival) {
    sequences_.push_back(
        std::make_unique<Sequence>(MakeSequence(arrival, {.max_tokens = 1, .max_model_len = 9})));
    sequences_.back()->set_arrival(arrival);
    return sequences_.back().get();
  }
  std::vector<std::unique_ptr<Sequence>> sequences_;
};

TEST_F(CohortsTest, AreDealtEvenly) {
  Cohorts cohorts(3);
  std::vector<int32_t> sizes;
  for (int32_t cohort = 0; cohort < 3; ++cohort) {
    while (cohorts.HasRoom(cohort, 8)) cohorts.Insert(cohort, Make(cohorts.size()));
    sizes.push_back(static_cast<int32_t>(cohorts.at(cohort).size()));
  }
  EXPECT_THAT(sizes, ElementsAre(3, 3, 2));
}

TEST_F(CohortsTest, AShrunkCohortTakesTheYoungestOfTheLargest) {
  Cohorts cohorts(2);
  Sequence* oldest = Make(0);
  Sequence* middle = Make(1);
  Sequence* youngest = Make(2);
  for (Sequence* sequence : {youngest, oldest, middle}) cohorts.Insert(0, sequence);
  cohorts.Balance(1);
  EXPECT_THAT(cohorts.at(0), ElementsAre(oldest, middle));
  EXPECT_THAT(cohorts.at(1), ElementsAre(youngest));
  cohorts.Balance(1);
  EXPECT_EQ(cohorts.at(0).size(), 2u);
  EXPECT_EQ(cohorts.size(), 3);
}

TEST_F(CohortsTest, TheYoungestIsNeverOlderThanWhoAsksNorInTheStep) {
  Cohorts cohorts(2);
  Sequence* oldest = Make(0);
  Sequence* middle = Make(1);
  Sequence* youngest = Make(2);
  cohorts.Insert(0, oldest);
  cohorts.Insert(1, middle);
  cohorts.Insert(0, youngest);
  EXPECT_EQ(cohorts.YoungestAfter(*oldest, StepId{7}), youngest);
  youngest->PlanRow(1, StepId{7}, std::nullopt);
  EXPECT_EQ(cohorts.YoungestAfter(*oldest, StepId{7}), middle);
  EXPECT_EQ(cohorts.YoungestAfter(*middle, StepId{7}), nullptr);
}

}  // namespace
}  // namespace polyreme::sched
