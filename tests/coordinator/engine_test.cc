// The engine with its thread: what clients and the coordinator's main see.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "coordinator/engine/engine.h"
#include "tests/coordinator/engine_harness.h"

namespace polyreme::engine {
namespace {

using ::testing::HasSubstr;

absl::Time Soon() {
  return MonotonicNow() + absl::Seconds(30);
}

class EngineTest : public ::testing::Test {
 protected:
  explicit EngineTest(const EngineOptions& options = SmallEngine())
      : link_(options.limits),
        tokenizer_(text::LoadOrDie(text::TinyTokenizerJson())),
        metrics_("tiny", Metrics::Names::kOwn),
        engine_(
            std::make_unique<Engine>(options, SmallModel(), link_, *tokenizer_, clock_, metrics_)) {
    link_.Say('x', "hello");
    link_.Say('l', std::string(60, 'a'));
  }

  std::shared_ptr<TokenStream> MustSubmit(GenerateRequest request) {
    auto stream = engine_->Submit(std::move(request));
    CHECK(stream.ok(), "{}", Message(stream.status()));
    return *stream;
  }

  const SystemClock clock_;
  ScriptedLink link_;
  std::unique_ptr<const text::Tokenizer> tokenizer_;
  Metrics metrics_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTest, ServesManyClientsAtOnce) {
  engine_->Start();
  std::vector<std::thread> clients;
  std::vector<std::string> texts(16);
  for (size_t i = 0; i < texts.size(); ++i) {
    clients.emplace_back([&, i] { texts[i] = ReadAll(*MustSubmit(Ask('x', 3, 20))).text; });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_THAT(texts, ::testing::Each("hello"));
  engine_->Drain(Soon());
  const EngineHealth health = engine_->health();
  EXPECT_EQ(health.num_running + health.num_waiting, 0);
  EXPECT_GT(health.steps_committed, 5);
  EXPECT_FALSE(health.serving);
  EXPECT_EQ(health.reason, "the server is shutting down");
}

TEST_F(EngineTest, RefusesBadRequestsWithoutTroublingTheThread) {
  engine_->Start();
  EXPECT_EQ(engine_->Submit(Ask('x', 3, 0)).status().code(), absl::StatusCode::kInvalidArgument);
  GenerateRequest request = Ask('x', 3, 5);
  request.stop = {"\xFF"};
  const absl::Status status = engine_->Submit(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("stop"));
  EXPECT_TRUE(engine_->health().serving);
}

TEST_F(EngineTest, AFullWaitingListRefusesAtOnce) {
  link_.HoldAt(StepId{0});
  engine_->Start();
  // 16 may wait; with 8 choices each, the third request is one too many unless some have started.
  std::vector<std::shared_ptr<TokenStream>> streams;
  absl::Status refused;
  for (int i = 0; i < 10 && refused.ok(); ++i) {
    GenerateRequest request = Ask('x', 3, 5);
    request.n = 8;
    auto stream = engine_->Submit(request);
    if (stream.ok()) streams.push_back(*stream);
    refused = stream.status();
  }
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(refused), HasSubstr("of at most 16 sequences are waiting"));
  EXPECT_GE(streams.size(), 2u);
  link_.Release();
  for (const auto& stream : streams) EXPECT_TRUE(ReadAll(*stream).status.ok());
  EXPECT_TRUE(engine_->Submit(Ask('x', 3, 5)).ok());
}

TEST_F(EngineTest, ALostWorkerClosesEveryStreamWithTheReason) {
  link_.FailAt(StepId{2}, Unavailable("rank 0 was lost"));
  engine_->Start();
  const auto stream = MustSubmit(Ask('x', 3, 20));
  const Received got = ReadAll(*stream);
  EXPECT_EQ(got.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(got.status), HasSubstr("rank 0 was lost"));
  EXPECT_EQ(got.text, "he");
  EXPECT_THAT(Message(engine_->WaitUntilFailed(Soon())), HasSubstr("step 2: rank 0 was lost"));
  EXPECT_EQ(engine_->Submit(Ask('x', 3, 20)).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(engine_->health().serving);
  EXPECT_THAT(engine_->health().reason, HasSubstr("rank 0 was lost"));
  EXPECT_EQ(link_.num_aborts(), 1);
}

TEST_F(EngineTest, AStreamGoesOnInTheNextEpoch) {
  link_.AllowRecoveries(1);
  link_.FailAt(StepId{2}, Unavailable("rank 0 was lost"));
  engine_->Start();
  const Received got = ReadAll(*MustSubmit(Ask('x', 3, 20)));
  EXPECT_TRUE(got.status.ok()) << Message(got.status);
  EXPECT_EQ(got.text, "hello");
  EXPECT_EQ(link_.num_recoveries(), 1);
  EXPECT_TRUE(engine_->health().serving);
}

TEST_F(EngineTest, ARequestThatKillsTwiceIsQuarantinedAndTheNextIsServed) {
  link_.AllowRecoveries(2);
  link_.Kill('k');
  engine_->Start();
  const Received got = ReadAll(*MustSubmit(Ask('k', 3, 20)));
  EXPECT_EQ(got.status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(Message(got.status), HasSubstr("quarantined"));
  EXPECT_EQ(ReadAll(*MustSubmit(Ask('x', 3, 20))).text, "hello");
  EXPECT_EQ(link_.num_recoveries(), 2);
}

TEST_F(EngineTest, NeighboursOfAKillerFinish) {
  link_.AllowRecoveries(3);
  link_.Kill('k');
  const auto submit = [&] {
    return std::vector{MustSubmit(Ask('x', 3, 20)), MustSubmit(Ask('k', 3, 20)),
                       MustSubmit(Ask('x', 5, 20))};
  };
  engine_->Start();
  const auto streams = submit();
  EXPECT_EQ(ReadAll(*streams[0]).text, "hello");
  EXPECT_EQ(ReadAll(*streams[1]).status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(ReadAll(*streams[2]).text, "hello");
  EXPECT_LE(link_.num_recoveries(), 3);
}

TEST_F(EngineTest, DrainLetsWhatRunsFinishAndAdmitsNothing) {
  link_.HoldAt(StepId{3});
  engine_->Start();
  const auto stream = MustSubmit(Ask('x', 3, 20));
  ASSERT_TRUE(stream->Next(Soon()).ok());
  std::thread drain([&] { engine_->Drain(Soon()); });
  while (engine_->health().serving) std::this_thread::yield();
  EXPECT_EQ(engine_->Submit(Ask('x', 3, 20)).status().code(), absl::StatusCode::kUnavailable);
  link_.Release();
  drain.join();
  const Received got = ReadAll(*stream);
  EXPECT_EQ(got.text, "ello");
  EXPECT_TRUE(got.status.ok());
}

TEST_F(EngineTest, WhatOutlastsTheDrainEndsWithUnavailable) {
  link_.HoldAt(StepId{3});
  engine_->Start();
  const auto stream = MustSubmit(Ask('l', 3, 50));
  link_.WaitUntilHeld();
  engine_->Drain(MonotonicNow());
  link_.Release();
  const Received got = ReadAll(*stream);
  EXPECT_EQ(got.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Message(got.status), "the server is shutting down");
}

TEST_F(EngineTest, StopClosesStreamsAlsoWhenAWorkerHangs) {
  link_.HoldAt(StepId{2});
  engine_->Start();
  const auto stream = MustSubmit(Ask('l', 3, 50));
  link_.WaitUntilHeld();
  engine_->Stop();
  EXPECT_EQ(link_.num_aborts(), 1);
  EXPECT_EQ(ReadAll(*stream).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(engine_->WaitUntilFailed(Soon()).ok()) << "to be stopped is no failure";
}

// The engine thread waits in a step that does not end; clients hear of their deadlines all the
// same.
TEST_F(EngineTest, DeadlinesAreToldAlsoWhenAWorkerHangs) {
  link_.HoldAt(StepId{2});
  engine_->Start();
  GenerateRequest request = Ask('l', 3, 50);
  request.deadline = MonotonicNow() + absl::Milliseconds(300);
  const auto running = MustSubmit(request);
  link_.WaitUntilHeld();
  const auto queued = MustSubmit(request);
  EXPECT_EQ(ReadAll(*running).status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(ReadAll(*queued).status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_GE(MonotonicNow(), request.deadline);
  link_.Release();
  EXPECT_EQ(ReadAll(*MustSubmit(Ask('x', 3, 20))).text, "hello");
  EXPECT_EQ(engine_->Submit(request).status().code(), absl::StatusCode::kDeadlineExceeded);
  engine_->Drain(Soon());
  EXPECT_EQ(engine_->health().num_running, 0);
}

TEST_F(EngineTest, CheckRoomSaysWhatSubmitWould) {
  EXPECT_EQ(engine_->CheckRoom().code(), absl::StatusCode::kUnavailable);
  link_.HoldAt(StepId{1});
  engine_->Start();
  EXPECT_TRUE(engine_->CheckRoom().ok());
  std::vector<std::shared_ptr<TokenStream>> streams = {MustSubmit(Ask('l', 3, 50))};
  link_.WaitUntilHeld();
  while (engine_->CheckRoom().ok()) streams.push_back(MustSubmit(Ask('l', 3, 50)));
  EXPECT_EQ(engine_->CheckRoom().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(engine_->Submit(Ask('l', 3, 50)).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(streams.size(), 1u + static_cast<size_t>(SmallEngine().max_waiting));
  link_.Release();
}

class ShortQueueTest : public EngineTest {
 protected:
  static EngineOptions Options() {
    EngineOptions options = SmallEngine();
    options.max_waiting = 2;
    return options;
  }
  ShortQueueTest() : EngineTest(Options()) {}
};

TEST_F(ShortQueueTest, MoreChoicesThanMayWaitAreTakenWhenNobodyWaits) {
  engine_->Start();
  GenerateRequest request = Ask('x', 3, 20);
  request.n = 8;
  EXPECT_EQ(ReadAll(*MustSubmit(request)).pieces.size() > 0, true);
}

TEST_F(EngineTest, CancelFreesTheBlocksWhileOthersRun) {
  engine_->Start();
  const auto stream = MustSubmit(Ask('l', 3, 50));
  ASSERT_TRUE(stream->Next(Soon()).ok());
  stream->Cancel();
  EXPECT_EQ(ReadAll(*stream).ended, true);
  EXPECT_EQ(ReadAll(*MustSubmit(Ask('x', 3, 20))).text, "hello");
}

TEST_F(EngineTest, AnEngineThatNeverStartedRefusesAndEnds) {
  const absl::Status status = engine_->Submit(Ask('x', 3, 20)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine_->health().reason, "the engine has not started");
  engine_->Stop();
  EXPECT_EQ(engine_->health().reason, "the engine has stopped");
}

}  // namespace
}  // namespace polyreme::engine
