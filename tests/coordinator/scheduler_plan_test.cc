// Exact plans through admission, chunking, running ahead, preemption, cancelling, cohorts and
// rewinding.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/scheduler_harness.h"

namespace polyreme::sched {
namespace {

using step::StepPlan;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

StepPlan Base(int64_t id, int64_t epoch = 1) {
  StepPlan plan;
  plan.id = StepId{id};
  plan.epoch = Epoch{epoch};
  return plan;
}

template <class T>
std::vector<T> Join(std::vector<T> a, const std::vector<T>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(SchedulerPlan, APromptIsOneRowAndDecodingRunsAheadOfItsTokens) {
  SchedulerHarness h(SmallLimits());
  ASSERT_TRUE(h.Add(1, 6, 4).ok());

  StepPlan want = Base(0);
  want.opened = {Opened(0, 1, 6, Blocks({0, 1}))};
  want.rows = {Row(0, 0, 6)};
  want.tokens = Prompt(1, 0, 6);
  want.samples = {Draws(0, 5)};
  EXPECT_EQ(h.Plan(), want);

  want = Base(1);
  want.rows = {FedBack(0, 6, 0, 0)};
  want.tokens = {0};
  want.samples = {Draws(0, 0)};
  EXPECT_EQ(h.Plan(), want);
  EXPECT_TRUE(h.Idle()) << "two steps are in flight";

  EXPECT_THAT(h.Commit(), ElementsAre(Token(1, h.Drawn(1, 6, 0), 0)));
  want = Base(2);
  want.rows = {FedBack(0, 7, 1, 0)};
  want.tokens = {0};
  want.samples = {Draws(0, 0)};
  EXPECT_EQ(h.Plan(), want);

  EXPECT_THAT(h.Commit(), ElementsAre(Token(1, h.Drawn(1, 6, 1), 0)));
  want = Base(3);
  want.appended = {Appended(0, 2)};
  want.rows = {FedBack(0, 8, 2, 0)};
  want.tokens = {0};
  want.samples = {Draws(0, 0)};
  EXPECT_EQ(h.Plan(), want);

  EXPECT_THAT(h.Commit(), ElementsAre(Token(1, h.Drawn(1, 6, 2), 0)));
  EXPECT_TRUE(h.Idle()) << "the fourth token is the last and in flight";
  EXPECT_THAT(h.Commit(), ElementsAre(Token(1, h.Drawn(1, 6, 3), 0, Finish::kLength)));
  EXPECT_EQ(h.blocks.num_free(), 8);
  EXPECT_EQ(h.scheduler.num_running(), 0);
}

TEST(SchedulerPlan, ACommittedTokenIsGivenInThePlan) {
  SchedulerHarness h(SmallLimits());
  ASSERT_TRUE(h.Add(1, 2, 4).ok());
  h.Plan();
  h.Commit();
  StepPlan want = Base(1);
  want.rows = {Row(0, 2, 1)};
  want.tokens = {h.Drawn(1, 2, 0)};
  want.samples = {Draws(0, 0)};
  EXPECT_EQ(h.Plan(), want);
}

TEST(SchedulerPlan, DecodeRowsComeBeforePromptChunksWhichFillTheBudget) {
  SchedulerLimits limits = SmallLimits();
  limits.max_num_batched_tokens = 5;
  SchedulerHarness h(limits);
  ASSERT_TRUE(h.Add(1, 2, 8).ok());
  ASSERT_TRUE(h.Add(2, 9, 1).ok());

  StepPlan want = Base(0);
  want.opened = {Opened(0, 1, 2, Blocks({0})), Opened(1, 2, 9, Blocks({1}))};
  want.rows = {Row(0, 0, 2), Row(1, 0, 3)};
  want.tokens = Join(Prompt(1, 0, 2), Prompt(2, 0, 3));
  want.samples = {Draws(0, 1)};
  EXPECT_EQ(h.Plan(), want);

  want = Base(1);
  want.appended = {Appended(1, 2)};
  want.rows = {FedBack(0, 2, 0, 0), Row(1, 3, 4)};
  want.tokens = Join({0}, Prompt(2, 3, 7));
  want.samples = {Draws(0, 0)};
  EXPECT_EQ(h.Plan(), want);
  h.Commit();

  want = Base(2);
  want.appended = {Appended(1, 3)};
  want.rows = {FedBack(0, 3, 1, 0), Row(1, 7, 2)};
  want.tokens = Join({0}, Prompt(2, 7, 9));
  want.samples = {Draws(0, 0), Draws(1, 2)};
  EXPECT_EQ(h.Plan(), want);
  h.Commit();
  EXPECT_THAT(h.Commit(), ElementsAre(Token(1, h.Drawn(1, 2, 2), 0),
                                      Token(2, h.Drawn(2, 9, 0), 1, Finish::kLength)));
}

TEST(SchedulerPlan, LowerPriorityNumbersRunFirst) {
  SchedulerLimits limits = SmallLimits();
  limits.max_num_seqs = 1;
  SchedulerHarness h(limits);
  SequenceOptions late = h.Options(1, 2, 1);
  late.priority = 5;
  ASSERT_TRUE(h.Add(std::move(late)).ok());
  ASSERT_TRUE(h.Add(2, 3, 1).ok());
  ASSERT_TRUE(h.Add(3, 3, 1).ok());
  std::vector<SequenceId> order;
  for (int i = 0; i < 3; ++i) {
    order.push_back(h.Plan().opened.at(0).sequence);
    h.Commit();
  }
  EXPECT_THAT(order, ElementsAre(SequenceId{2}, SequenceId{3}, SequenceId{1}));
}

// 1 needs a block when none is free. 2 came last among equals, but 3, who came between them, counts
// less.
TEST(SchedulerPlan, TheHighestPriorityNumberGivesWayFirstThenTheYoungest) {
  for (const int32_t priority : {0, 5}) {
    SchedulerLimits limits = SmallLimits();
    limits.step.num_blocks = 6;
    SchedulerHarness h(limits);
    ASSERT_TRUE(h.Add(1, 3, 7).ok());
    SequenceOptions between = h.Options(3, 3, 7);
    between.priority = priority;
    ASSERT_TRUE(h.Add(std::move(between)).ok());
    ASSERT_TRUE(h.Add(2, 3, 7).ok());
    EXPECT_EQ(h.Plan().opened.size(), 3u);
    h.Commit();
    std::vector<SequenceId> opened_again;
    while (h.scheduler.num_running() + h.scheduler.num_waiting() > 0) {
      for (const step::SlotOpen& opened : h.Plan().opened) opened_again.push_back(opened.sequence);
      h.Commit();
    }
    ASSERT_GE(h.scheduler.num_preemptions(), 1);
    ASSERT_FALSE(opened_again.empty());
    EXPECT_EQ(opened_again[0], SequenceId{priority == 0 ? 2 : 3});
  }
}

TEST(SchedulerPlan, ASlotAndItsBlocksGoToTheNextInTheVeryPlanThatClosesIt) {
  SchedulerLimits limits = SmallLimits();
  limits.max_num_seqs = 1;
  SchedulerHarness h(limits);
  ASSERT_TRUE(h.Add(1, 6, 1).ok());
  ASSERT_TRUE(h.Add(2, 3, 1).ok());
  h.Plan();
  EXPECT_TRUE(h.Idle());
  h.Commit();
  StepPlan want = Base(1);
  want.closed = {SlotId{0}};
  want.opened = {Opened(0, 2, 3, Blocks({0}))};
  want.rows = {Row(0, 0, 3)};
  want.tokens = Prompt(2, 0, 3);
  want.samples = {Draws(0, 2)};
  EXPECT_EQ(h.Plan(), want);
}

TEST(SchedulerPlan, ARowThatHadStoppedIsDropped) {
  SchedulerHarness h(SmallLimits());
  SequenceOptions options = h.Options(1, 3, 8);
  options.stop.eos_tokens = {h.Drawn(1, 3, 0)};
  ASSERT_TRUE(h.Add(std::move(options)).ok());
  h.Plan();
  h.Plan();
  EXPECT_THAT(h.Commit(), ElementsAre(Token(1, h.Drawn(1, 3, 0), 0, Finish::kEndOfSequence)));
  EXPECT_EQ(h.blocks.num_free(), 8);
  EXPECT_TRUE(h.Idle());
  EXPECT_THAT(h.Commit(), IsEmpty());
  ASSERT_TRUE(h.Add(2, 3, 1).ok());
  EXPECT_THAT(h.Plan().closed, ElementsAre(SlotId{0}));
}

// Sequence 1 needs a third block when none is free: 2 gives way, and comes back when its last step
// is committed and its tokens, with room to grow, fit beside what runs.
TEST(SchedulerPlan, TheYoungestGivesWayAndIsComputedAgain) {
  SchedulerLimits limits = SmallLimits();
  limits.step.num_blocks = 4;
  SchedulerHarness h(limits);
  ASSERT_TRUE(h.Add(1, 3, 7).ok());   // 9 positions, 3 blocks
  ASSERT_TRUE(h.Add(2, 3, 10).ok());  // 12 positions, 3 blocks
  h.Plan();                           // step 0: both prompts
  h.Plan();                           // step 1: position 3 of both
  h.Commit();
  StepPlan want = Base(2);
  want.appended = {Appended(0, 2), Appended(1, 3)};
  want.rows = {FedBack(0, 4, 1, 0), FedBack(1, 4, 1, 1)};
  want.tokens = {0, 0};
  want.samples = {Draws(0, 0), Draws(1, 1)};
  EXPECT_EQ(h.Plan(), want);
  for (int i = 3; i < 6; ++i) {  // steps 3 to 5: positions 5 to 7
    h.Commit();
    h.Plan();
  }
  h.Commit();
  want = Base(6);
  want.closed = {SlotId{1}};
  want.appended = {Appended(0, 1)};  // the first block of 2
  want.rows = {FedBack(0, 8, 5, 0)};
  want.tokens = {0};
  want.samples = {Draws(0, 0)};
  EXPECT_EQ(h.Plan(), want);
  EXPECT_EQ(h.scheduler.num_preemptions(), 1);

  // Step 5 still draws for 2, although it waits.
  EXPECT_THAT(h.Commit(),
              ElementsAre(Token(1, h.Drawn(1, 3, 5), 0), Token(2, h.Drawn(2, 3, 5), 1)));
  EXPECT_TRUE(h.Idle());
  EXPECT_THAT(h.Commit(), ElementsAre(Token(1, h.Drawn(1, 3, 6), 0, Finish::kLength)));

  want = Base(7);
  want.closed = {SlotId{0}};
  want.opened = {Opened(0, 2, 3, Blocks({0, 2, 1}))};
  for (int i = 0; i < 6; ++i) want.opened[0].tokens.push_back(h.Drawn(2, 3, i));
  want.rows = {Row(0, 0, 9)};
  want.tokens = want.opened[0].tokens;
  want.samples = {Draws(0, 8)};
  EXPECT_EQ(h.Plan(), want);
}

TEST(SchedulerPlan, CancelFreesBlocksAtOnceAndIsSilent) {
  SchedulerHarness h(SmallLimits());
  ASSERT_TRUE(h.Add(1, 3, 8).ok());
  ASSERT_TRUE(h.Add(2, 3, 8).ok());
  h.Plan();
  h.scheduler.Cancel(SequenceId{1});
  EXPECT_EQ(h.blocks.num_free(), 7);
  h.scheduler.Cancel(SequenceId{1});
  h.scheduler.Cancel(SequenceId{77});
  StepPlan want = Base(1);
  want.closed = {SlotId{0}};
  want.rows = {FedBack(1, 3, 0, 1)};
  want.tokens = {0};
  want.samples = {Draws(1, 0)};
  EXPECT_EQ(h.Plan(), want);
  EXPECT_THAT(h.Commit(), ElementsAre(Token(2, h.Drawn(2, 3, 0), 1)));
  h.scheduler.Cancel(SequenceId{2});
  EXPECT_THAT(h.Commit(), IsEmpty());
  EXPECT_TRUE(h.Idle());
  EXPECT_EQ(h.blocks.num_free(), 8);
}

// Two choices of nine tokens in blocks of four: the second shares two blocks and computes the ninth
// token itself.
TEST(SchedulerPlan, ChoicesOfOnePromptShareItsFullBlocks) {
  SchedulerHarness h(SmallLimits());
  for (int64_t id = 1; id <= 2; ++id) {
    SequenceOptions options = h.Options(id, 9, 3);
    options.prompt = Prompt(1, 0, 9);
    options.group = SequenceId{1};
    ASSERT_TRUE(h.Add(std::move(options)).ok());
  }
  StepPlan want = Base(0);
  want.opened = {Opened(0, 1, 9, Blocks({0, 1, 2})), Opened(1, 1, 9, Blocks({0, 1, 3}))};
  want.opened[1].sequence = SequenceId{2};
  want.rows = {Row(0, 0, 9), Row(1, 8, 1)};
  want.tokens = Join(Prompt(1, 0, 9), Prompt(1, 8, 9));
  want.samples = {Draws(0, 8), Draws(1, 9)};
  EXPECT_EQ(h.Plan(), want);
  EXPECT_EQ(h.blocks.num_free(), 4);
  EXPECT_THAT(h.Commit(),
              ElementsAre(Token(1, h.Drawn(1, 9, 0), 0), Token(2, h.Drawn(1, 9, 0), 1)));
  h.scheduler.Cancel(SequenceId{1});
  EXPECT_EQ(h.blocks.num_free(), 5) << "two of its blocks are shared";
  h.Plan();
  EXPECT_THAT(h.Commit(), ElementsAre(Token(2, h.Drawn(1, 9, 1), 0)));
  h.scheduler.Cancel(SequenceId{2});
  EXPECT_EQ(h.blocks.num_free(), 8);
}

TEST(SchedulerPlan, AChoiceWaitsForThePromptThatAnotherIsComputing) {
  SchedulerLimits limits = SmallLimits();
  limits.max_num_batched_tokens = 6;
  limits.stages = 2;
  SchedulerHarness h(limits);
  for (int64_t id = 1; id <= 2; ++id) {
    SequenceOptions options = h.Options(id, 9, 3);
    options.prompt = Prompt(1, 0, 9);
    options.group = SequenceId{1};
    ASSERT_TRUE(h.Add(std::move(options)).ok());
  }
  EXPECT_THAT(h.Plan().rows, ElementsAre(Row(0, 0, 6)));
  // The other cohort has nothing: its one candidate waits.
  EXPECT_THAT(h.Plan().rows, ElementsAre(Row(0, 6, 3)));
  EXPECT_THAT(h.Plan().rows, ElementsAre(Row(1, 8, 1)));
}

TEST(SchedulerPlan, CohortsTakeTurnsAndFillThePipeline) {
  SchedulerLimits limits = SmallLimits();
  limits.stages = 2;
  SchedulerHarness h(limits);
  for (int64_t id = 1; id <= 3; ++id) ASSERT_TRUE(h.Add(id, 2, 4).ok());

  StepPlan want = Base(0);
  want.opened = {Opened(0, 1, 2, Blocks({0})), Opened(1, 2, 2, Blocks({1}))};
  want.rows = {Row(0, 0, 2), Row(1, 0, 2)};
  want.tokens = Join(Prompt(1, 0, 2), Prompt(2, 0, 2));
  want.samples = {Draws(0, 1), Draws(1, 3)};
  EXPECT_EQ(h.Plan(), want);

  want = Base(1);
  want.opened = {Opened(2, 3, 2, Blocks({2}))};
  want.rows = {Row(2, 0, 2)};
  want.tokens = Prompt(3, 0, 2);
  want.samples = {Draws(2, 1)};
  EXPECT_EQ(h.Plan(), want);

  want = Base(2);
  want.rows = {FedBack(0, 2, 0, 0), FedBack(1, 2, 0, 1)};
  want.tokens = {0, 0};
  want.samples = {Draws(0, 0), Draws(1, 1)};
  EXPECT_EQ(h.Plan(), want);
  EXPECT_TRUE(h.Idle()) << "three steps are in flight";

  h.Commit();
  want = Base(3);
  want.rows = {FedBack(2, 2, 1, 0)};
  want.tokens = {0};
  want.samples = {Draws(2, 0)};
  EXPECT_EQ(h.Plan(), want);
}

TEST(SchedulerPlan, AnEmptyCohortIsSkippedAndNoRowIsInMoreThanTwoSteps) {
  SchedulerLimits limits = SmallLimits();
  limits.stages = 4;
  SchedulerHarness h(limits);
  ASSERT_TRUE(h.Add(1, 2, 8).ok());
  h.Plan();
  StepPlan want = Base(1);
  want.rows = {FedBack(0, 2, 0, 0)};
  want.tokens = {0};
  want.samples = {Draws(0, 0)};
  EXPECT_EQ(h.Plan(), want);
  EXPECT_TRUE(h.Idle());
}

TEST(SchedulerPlan, PromptScoresAreSamplesOfEachChunk) {
  SchedulerLimits limits = SmallLimits();
  limits.max_num_batched_tokens = 3;
  SchedulerHarness h(limits);
  SequenceOptions options = h.Options(1, 5, 1);
  options.scores_prompt = true;
  ASSERT_TRUE(h.Add(std::move(options)).ok());

  StepPlan want = Base(0);
  want.opened = {Opened(0, 1, 5, Blocks({0}))};
  want.rows = {Row(0, 0, 3)};
  want.tokens = Prompt(1, 0, 3);
  want.samples = {Scores(0, 0, 101), Scores(0, 1, 102), Scores(0, 2, 103)};
  EXPECT_EQ(h.Plan(), want);

  want = Base(1);
  want.appended = {Appended(0, 1)};
  want.rows = {Row(0, 3, 2)};
  want.tokens = Prompt(1, 3, 5);
  want.samples = {Scores(0, 0, 104), Draws(0, 1)};
  EXPECT_EQ(h.Plan(), want);

  const auto score = [](TokenId token, int32_t sample) {
    return TokenEvent{SequenceId{1}, TokenEvent::Kind::kPromptScore, token, sample, Finish::kNone};
  };
  EXPECT_THAT(h.Commit(), ElementsAre(score(101, 0), score(102, 1), score(103, 2)));
  EXPECT_THAT(h.Commit(),
              ElementsAre(score(104, 0), Token(1, h.Drawn(1, 5, 0), 1, Finish::kLength)));
}

TEST(SchedulerPlan, APromptMayOnlyBeScored) {
  SchedulerHarness h(SmallLimits());
  SequenceOptions options = h.Options(1, 2, 0);
  options.scores_prompt = true;
  ASSERT_TRUE(h.Add(std::move(options)).ok());
  EXPECT_THAT(h.Plan().samples, ElementsAre(Scores(0, 0, 101)));
  EXPECT_TRUE(h.Idle());
  EXPECT_THAT(
      h.Commit(),
      ElementsAre(TokenEvent{SequenceId{1}, TokenEvent::Kind::kPromptScore, 101, 0, Finish::kNone},
                  TokenEvent{SequenceId{1}, TokenEvent::Kind::kEnd, 0, -1, Finish::kLength}));
  EXPECT_EQ(h.blocks.num_free(), 8);
}

TEST(SchedulerPlan, ScoresOfALongPromptKeepToTheSampleBudget) {
  SchedulerLimits limits = SmallLimits();
  limits.step.max_step_samples = 4;
  SchedulerHarness h(limits);
  ASSERT_TRUE(h.Add(1, 2, 8).ok());
  SequenceOptions options = h.Options(2, 9, 1);
  options.scores_prompt = true;
  ASSERT_TRUE(h.Add(std::move(options)).ok());
  EXPECT_THAT(h.Plan().rows, ElementsAre(Row(0, 0, 2), Row(1, 0, 3)));
  EXPECT_THAT(h.Plan().rows, ElementsAre(FedBack(0, 2, 0, 0), Row(1, 3, 3)));
}

TEST(SchedulerPlan, ARowWithoutFiniteLogitsEndsAloneWithATypedError) {
  SchedulerHarness h(SmallLimits());
  SequenceOptions options = h.Options(1, 3, 8);
  options.prompt[1] = FakeWorker::kPoison;
  ASSERT_TRUE(h.Add(std::move(options)).ok());
  ASSERT_TRUE(h.Add(2, 3, 2).ok());
  h.Plan();
  h.Plan();
  EXPECT_THAT(h.Commit(), ElementsAre(TokenEvent{SequenceId{1}, TokenEvent::Kind::kEnd, 0, -1,
                                                 Finish::kNotFinite},
                                      Token(2, h.Drawn(2, 3, 0), 1)));
  EXPECT_THAT(h.Commit(), ElementsAre(Token(2, h.Drawn(2, 3, 1), 1, Finish::kLength)));
  EXPECT_EQ(h.blocks.num_free(), 8);
}

TEST(SchedulerPlan, RewindForgetsCacheAndKeepsTokens) {
  SchedulerHarness h(SmallLimits());
  ASSERT_TRUE(h.Add(1, 3, 8).ok());
  ASSERT_TRUE(h.Add(2, 3, 8).ok());
  h.Plan();
  h.Plan();
  h.Commit();
  h.Rewind(Epoch{2});
  EXPECT_EQ(h.blocks.num_free(), 8);
  EXPECT_EQ(h.scheduler.num_waiting(), 2);

  StepPlan want = Base(0, 2);
  want.opened = {Opened(0, 1, 3, Blocks({0})), Opened(1, 2, 3, Blocks({1}))};
  want.opened[0].tokens.push_back(h.Drawn(1, 3, 0));
  want.opened[1].tokens.push_back(h.Drawn(2, 3, 0));
  want.rows = {Row(0, 0, 4), Row(1, 0, 4)};
  want.tokens = Join(want.opened[0].tokens, want.opened[1].tokens);
  want.samples = {Draws(0, 3), Draws(1, 7)};
  StepPlan got = h.Plan();
  // Which slots and blocks they get is no part of the promise.
  EXPECT_EQ(got.opened.size(), 2u);
  EXPECT_EQ(got.tokens, want.tokens);
  EXPECT_TRUE(got.closed.empty());
  EXPECT_EQ(got.id, want.id);
  EXPECT_EQ(got.epoch, want.epoch);
  EXPECT_THAT(h.Commit(),
              ElementsAre(Token(1, h.Drawn(1, 3, 1), 0), Token(2, h.Drawn(2, 3, 1), 1)));
}

TEST(Scheduler, RefusesWhatCanNeverFitAndWhatIsTooMuchNow) {
  SchedulerLimits limits = SmallLimits();
  limits.step.max_model_len = 64;
  limits.max_waiting = 1;
  SchedulerHarness h(limits);
  const absl::Status never = h.Add(1, 10, 24);
  EXPECT_EQ(never.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Message(never),
            "prompt and max_tokens: expected at most 32 tokens, which is all the cache there is, "
            "got 10 + 24");
  EXPECT_TRUE(h.Add(2, 10, 23).ok());
  const absl::Status full = h.Add(3, 1, 1);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Message(full), "1 sequences are waiting, as many as may");
}

TEST(Scheduler, RefusesAnswersToOtherQuestions) {
  SchedulerHarness h(SmallLimits());
  EXPECT_EQ(h.scheduler.Commit({}).status().code(), absl::StatusCode::kInternal);
  ASSERT_TRUE(h.Add(1, 3, 8).ok());
  h.Plan();
  const step::StepResult right = h.answers.front();
  step::StepResult wrong = right;
  wrong.id = StepId{1};
  EXPECT_EQ(h.scheduler.Commit(wrong).status().code(), absl::StatusCode::kInternal);
  wrong = right;
  wrong.epoch = Epoch{2};
  EXPECT_EQ(h.scheduler.Commit(wrong).status().code(), absl::StatusCode::kInternal);
  wrong = right;
  wrong.samples.clear();
  EXPECT_EQ(h.scheduler.Commit(wrong).status().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(h.scheduler.Commit(right).ok());
}

}  // namespace
}  // namespace polyreme::sched
