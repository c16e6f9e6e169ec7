// The engine taken round by round: text, stops, scores, clients that leave, limits in time,
// failures.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/engine_harness.h"

namespace polyreme::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Received RunAlone(CoreHarness& h, GenerateRequest request) {
  const auto stream = h.Submit(std::move(request));
  h.RunToEnd();
  Received received;
  ReadNow(*stream, received);
  return received;
}

TEST(EngineCore, EndOfSequenceIsCountedButNotShown) {
  CoreHarness h;
  h.link.Say('x', "hello");
  const Received got = RunAlone(h, Ask('x', 3, 20));
  EXPECT_EQ(got.text, "hello");
  EXPECT_THAT(got.tokens, ElementsAre('h', 'e', 'l', 'l', 'o', ScriptedLink::kEnd));
  EXPECT_EQ(got.finish, FinishReason::kStop);
  EXPECT_EQ(got.pieces.back().stop_token, std::nullopt);
  EXPECT_TRUE(got.ended);
  EXPECT_TRUE(got.status.ok());
  EXPECT_EQ(h.core->num_requests(), 0);
  EXPECT_EQ(h.core->num_free_blocks(), 64);
  EXPECT_EQ(h.signals->num_queued.load(), 0);
}

TEST(EngineCore, MaxTokensEndsWithLength) {
  CoreHarness h;
  h.link.Say('x', "hello");
  const Received got = RunAlone(h, Ask('x', 3, 2));
  EXPECT_EQ(got.text, "he");
  EXPECT_EQ(got.finish, FinishReason::kLength);
}

TEST(EngineCore, IgnoreEosRunsOn) {
  CoreHarness h;
  h.link.Say('x', "hi");
  GenerateRequest request = Ask('x', 3, 4);
  request.ignore_eos = true;
  const Received got = RunAlone(h, std::move(request));
  EXPECT_THAT(got.tokens, ElementsAre('h', 'i', ScriptedLink::kEnd, ScriptedLink::kEnd));
  EXPECT_EQ(got.text, "hi");
  EXPECT_EQ(got.finish, FinishReason::kLength);
}

TEST(EngineCore, AStopTokenIsNamedAndNotShown) {
  CoreHarness h;
  h.link.Say('x', "ab;cd");
  GenerateRequest request = Ask('x', 3, 20);
  request.stop_token_ids = {';'};
  Received got = RunAlone(h, request);
  EXPECT_EQ(got.text, "ab");
  EXPECT_EQ(got.finish, FinishReason::kStop);
  EXPECT_EQ(got.pieces.back().stop_token, TokenId{';'});
  request.include_stop_str_in_output = true;
  got = RunAlone(h, request);
  EXPECT_EQ(got.text, "ab;");
}

TEST(EngineCore, AStopStringEndsWhereItIsCompleteAndWhatRanOnIsCountedNowhere) {
  CoreHarness h;
  h.link.Say('x', "one STOP two three");
  GenerateRequest request = Ask('x', 3, 20);
  request.stop = {"zzz", "STOP"};
  Received got = RunAlone(h, request);
  EXPECT_EQ(got.text, "one ");
  EXPECT_EQ(got.tokens.size(), 8u);
  EXPECT_EQ(got.pieces.back().stop_string, "STOP");
  EXPECT_EQ(got.finish, FinishReason::kStop);
  EXPECT_EQ(h.MetricLine("polyreme_generation_tokens_total"), "8");
  EXPECT_EQ(h.core->num_free_blocks(), 64);
  request.include_stop_str_in_output = true;
  got = RunAlone(h, request);
  EXPECT_EQ(got.text, "one STOP");
}

TEST(EngineCore, NoStopStringEndsItBeforeMinTokens) {
  CoreHarness h;
  h.link.Say('x', "a.b.c.d");
  GenerateRequest request = Ask('x', 3, 20);
  request.stop = {"."};
  request.min_tokens = 3;
  const Received got = RunAlone(h, request);
  EXPECT_EQ(got.text, "a.b");
  EXPECT_EQ(got.tokens.size(), 4u);
}

TEST(EngineCore, ABeginningOfAStopStringIsShownInTheEnd) {
  CoreHarness h;
  h.link.Say('x', "wait ST");
  GenerateRequest request = Ask('x', 3, 20);
  request.stop = {"STOP"};
  EXPECT_EQ(RunAlone(h, request).text, "wait ST");
}

TEST(EngineCore, HalfACharacterIsNeverSent) {
  CoreHarness h;
  h.link.Say('x', "é!");
  const Received got = RunAlone(h, Ask('x', 3, 20));
  EXPECT_EQ(got.pieces[0].text, "");
  EXPECT_EQ(got.pieces[1].text, "é");
  h.link.Say('y', "\xC3");
  EXPECT_EQ(RunAlone(h, Ask('y', 3, 20)).text, "\uFFFD");
}

TEST(EngineCore, ChoicesShareAStreamAndEndApart) {
  CoreHarness h;
  h.link.Say('x', "hello");
  GenerateRequest request = Ask('x', 9, 3);
  request.n = 3;
  const auto stream = h.Submit(request);
  h.RunToEnd();
  std::vector<int> finished(3);
  std::vector<std::string> texts(3);
  while (true) {
    TokenStream::Polled polled = stream->Poll();
    ASSERT_TRUE(polled.ready);
    ASSERT_TRUE(polled.piece.ok());
    if (!polled.piece->has_value()) break;
    const OutputPiece& piece = **polled.piece;
    texts[static_cast<size_t>(piece.choice)] += piece.text;
    if (piece.finish == FinishReason::kLength) ++finished[static_cast<size_t>(piece.choice)];
  }
  EXPECT_THAT(finished, ElementsAre(1, 1, 1));
  EXPECT_THAT(texts, ElementsAre("hel", "hel", "hel"));
  EXPECT_EQ(h.core->num_free_blocks(), 64);
}

TEST(EngineCore, DrawsAndPromptScoresEachGetTheCandidatesTheyAskedFor) {
  CoreHarness h;
  h.link.Say('x', "hello");
  GenerateRequest request = Ask('x', 4, 2);
  request.logprobs = 1;
  request.prompt_logprobs = 3;
  const Received got = RunAlone(h, request);
  ASSERT_EQ(got.pieces.size(), 2u);
  ASSERT_EQ(got.pieces[0].prompt_scores.size(), 3u);
  EXPECT_EQ(got.pieces[0].prompt_scores[2].token, 'p');
  EXPECT_EQ(got.pieces[0].prompt_scores[2].logprob, -3.0f);
  EXPECT_EQ(got.pieces[0].prompt_scores[2].top.size(), 3u);
  EXPECT_THAT(got.pieces[1].prompt_scores, IsEmpty());
  ASSERT_EQ(got.pieces[1].scores.size(), 1u);
  EXPECT_EQ(got.pieces[1].scores[0].token, 'e');
  EXPECT_EQ(got.pieces[1].scores[0].logprob, -5.0f);
  EXPECT_EQ(got.pieces[1].scores[0].top.size(), 1u);
}

TEST(EngineCore, APromptMayOnlyBeScored) {
  CoreHarness h;
  GenerateRequest request = Ask('x', 40, 0);
  request.prompt_logprobs = 0;
  const Received got = RunAlone(h, request);
  ASSERT_EQ(got.pieces.size(), 1u);
  EXPECT_EQ(got.pieces[0].prompt_scores.size(), 39u);
  EXPECT_EQ(got.finish, FinishReason::kLength);
  EXPECT_THAT(got.tokens, IsEmpty());
}

TEST(EngineCore, LogitsThatAreNotFiniteEndOneChoiceAlone) {
  CoreHarness h;
  h.link.Say('x', "hello");
  h.link.Say('y', "world");
  h.link.Poison('x', 2);
  const auto bad = h.Submit(Ask('x', 3, 20));
  const auto good = h.Submit(Ask('y', 3, 20));
  h.RunToEnd();
  Received got;
  ReadNow(*bad, got);
  EXPECT_EQ(got.text, "he");
  EXPECT_EQ(got.finish, FinishReason::kAbort);
  EXPECT_EQ(got.pieces.back().error.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Message(got.pieces.back().error), HasSubstr("NaN or infinite"));
  EXPECT_TRUE(got.status.ok());
  Received neighbour;
  ReadNow(*good, neighbour);
  EXPECT_EQ(neighbour.text, "world");
}

TEST(EngineCore, AClientThatLeavesGivesItsBlocksBackWithinAStep) {
  CoreHarness h;
  h.link.Say('x', std::string(50, 'a'));
  const auto stream = h.Submit(Ask('x', 9, 50));
  ASSERT_TRUE(h.core->RunOnce().ok());
  EXPECT_LT(h.core->num_free_blocks(), 64);
  stream->Cancel();
  ASSERT_TRUE(h.core->RunOnce().ok());
  EXPECT_EQ(h.core->num_free_blocks(), 64);
  EXPECT_EQ(h.core->num_requests(), 0);
  h.RunToEnd();
  Received got;
  ReadNow(*stream, got);
  EXPECT_EQ(got.status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(
      h.MetricLine("polyreme_request_success_total{model_name=\"tiny\",finished_reason=\"abort\""),
      "1");
}

TEST(EngineCore, AClientThatDoesNotReadLosesItsGeneration) {
  CoreHarness h;
  h.link.Say('x', std::string(50, 'a'));
  const auto stream = h.Submit(Ask('x', 9, 50), 5);
  h.RunToEnd();
  Received got;
  ReadNow(*stream, got);
  EXPECT_EQ(got.tokens.size(), 5u);
  EXPECT_EQ(got.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(h.core->num_free_blocks(), 64);
}

TEST(EngineCore, ADeadlineEndsARequestWhereverItIs) {
  CoreHarness h;
  h.link.Say('x', std::string(50, 'a'));
  GenerateRequest request = Ask('x', 9, 50);
  request.deadline = h.clock.now + absl::Seconds(5);
  const auto stream = h.Submit(request);
  ASSERT_TRUE(h.core->RunOnce().ok());
  h.clock.now += absl::Seconds(5);
  h.RunToEnd();
  Received got;
  ReadNow(*stream, got);
  EXPECT_EQ(got.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(got.tokens.size(), 1u);
  EXPECT_EQ(h.core->num_free_blocks(), 64);
}

TEST(EngineCore, ARequestThatNeverRanEndsAtItsDeadlineAndTheOneThatHoldsItsPlaceGoesOn) {
  EngineOptions options = SmallEngine();
  options.max_num_seqs = 1;
  CoreHarness h(options);
  h.link.Say('x', std::string(50, 'a'));
  const auto first = h.Submit(Ask('x', 9, 50));
  GenerateRequest request = Ask('x', 9, 50);
  request.deadline = h.clock.now + absl::Seconds(5);
  const auto second = h.Submit(request);
  ASSERT_TRUE(h.core->RunOnce().ok());
  EXPECT_EQ(h.core->num_waiting(), 1);
  h.clock.now += absl::Seconds(5);
  ASSERT_TRUE(h.core->RunOnce().ok());
  Received got;
  ReadNow(*second, got);
  EXPECT_EQ(got.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(got.tokens.empty());
  EXPECT_EQ(h.core->num_waiting(), 0);
  h.RunToEnd();
  Received whole;
  ReadNow(*first, whole);
  EXPECT_EQ(whole.tokens.size(), 50u);
  EXPECT_TRUE(whole.status.ok());
}

TEST(EngineCore, ALostWorkerIsAnErrorOfTheRoundAndRewindGoesOnWithoutAMark) {
  CoreHarness h;
  h.link.Say('x', "hello world");
  const auto stream = h.Submit(Ask('x', 3, 20));
  h.link.FailAt(StepId{3}, Unavailable("rank 0 was lost"));
  absl::Status status;
  while (status.ok()) status = h.core->RunOnce();
  EXPECT_EQ(Message(status), "step 3: rank 0 was lost");
  Received got;
  ReadNow(*stream, got);
  EXPECT_EQ(got.text, "hel");

  h.link.Restart();
  h.core->Rewind(Epoch{2});
  h.RunToEnd();
  ReadNow(*stream, got);
  EXPECT_EQ(got.text, "hello world");
  EXPECT_TRUE(got.ended && got.status.ok());
  EXPECT_EQ(h.core->num_free_blocks(), 64);
}

TEST(EngineCore, CountersShowHowDeepPlansRanAheadAndWhereRanksSpentTheirTime) {
  EngineOptions options = SmallEngine();
  CoreHarness h(options);
  h.link.Say('x', "abc");
  RunAlone(h, Ask('x', 3, 4));
  // Four draws; but for the first, each step was submitted while the one before was in flight.
  EXPECT_EQ(h.MetricLine("polyreme_steps_total"), "4");
  EXPECT_EQ(h.MetricLine("polyreme_steps_overlapped_total"), "3");
  EXPECT_EQ(h.MetricLine("polyreme_rank_busy_seconds_total{model_name=\"tiny\",rank=\"0\""),
            "0.012");
  EXPECT_EQ(h.MetricLine("polyreme_rank_waiting_seconds_total{model_name=\"tiny\",rank=\"0\""),
            "0.004");
  EXPECT_EQ(h.MetricLine("polyreme_prompt_tokens_total"), "3");
  EXPECT_EQ(h.MetricLine("vllm:prompt_tokens_total"), "3");
  EXPECT_EQ(h.MetricLine("vllm:generation_tokens_total"), "4");
  EXPECT_EQ(h.MetricLine("vllm:kv_cache_usage_perc"), "0");
}

TEST(EngineCore, TheSameSeedIsGivenToEachChoiceAndKeptOverARewind) {
  CoreHarness h;
  // Through the slot table of the link one sees what the workers were told.
  GenerateRequest request = Ask('x', 3, 20);
  request.n = 2;
  h.link.Say('x', std::string(20, 'a'));
  h.Submit(request);
  ASSERT_TRUE(h.core->RunOnce().ok());
  const uint64_t seed = h.link.slots().at(SlotId{0}).sampling.seed;
  EXPECT_EQ(h.link.slots().at(SlotId{1}).sampling.seed, seed);
  EXPECT_EQ(h.link.slots().at(SlotId{1}).sampling.choice, 1);
  h.link.Restart();
  h.core->Rewind(Epoch{2});
  ASSERT_TRUE(h.core->RunOnce().ok());
  EXPECT_EQ(h.link.slots().at(SlotId{0}).sampling.seed, seed);
}

}  // namespace
}  // namespace polyreme::engine
