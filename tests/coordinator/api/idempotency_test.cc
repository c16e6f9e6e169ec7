// A request that comes again under its Idempotency-Key.
#include "coordinator/api/idempotency.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "coordinator/api/grpc_replies.h"
#include "coordinator/api/task_pool.h"
#include "tests/coordinator/api/api_fixture.h"

namespace polyreme::api {
namespace {

using engine::FinishReason;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kBody[] = R"({"prompt":"hi","max_tokens":9})";
constexpr char kStreamBody[] = R"({"prompt":"hi","max_tokens":9,"stream":true})";

std::string Keyed(std::string_view key, std::string_view body, std::string_view more = "",
                  std::string_view path = "/v1/completions") {
  return PostJson(path, body, fmt::format("Idempotency-Key: {}\r\n{}", key, more));
}

// Time that passes when a test says so.
class HandClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::FromUnixSeconds(1000 + seconds_.load()); }
  void Advance(int64_t seconds) { seconds_ += seconds; }

 private:
  std::atomic<int64_t> seconds_{0};
};

class IdempotencyTest : public ApiTest {
 protected:
  // As Start, in hand-made time.
  void StartByHand(PublicServerOptions options = {}) {
    server_ = *PublicServer::Start(options, {.backend = backend_,
                                             .tokenizer = *tokenizer_,
                                             .chat_template = &*chat_,
                                             .model = TestModel(),
                                             .metrics = metrics_,
                                             .clock = hand_clock_});
    port_ = server_->bound_port();
  }

  static void Answer(const ScriptedBackend::Submitted& run, std::string_view text) {
    run.stream->Push(Piece(text, FinishReason::kStop));
    run.stream->Close(absl::OkStatus());
  }

  // Sends a request that has to run, and answers it.
  RawResponse RunOnce(std::string_view request, std::string_view text = "yes") {
    RawClient client(port_);
    client.Send(request);
    Answer(backend_.Next(), text);
    return client.Read().value_or(RawResponse{});
  }
  // Sends a request that must not run.
  RawResponse Again(std::string_view request) {
    const RawResponse response = Exchange(port_, request);
    EXPECT_TRUE(backend_.HasNone());
    return response;
  }

  // Returns when the server has noticed that every client that left before this call is gone.
  void WaitUntilLeavingIsNoticed() {
    RawClient other(port_);
    other.Send(PostJson("/v1/completions", kStreamBody));
    const auto run = backend_.Next();
    run.stream->Push(Piece("x"));
    other.ReadUntil("data: ");
    other.Close();
    ASSERT_TRUE(backend_.WaitUntilCancelled());
    EXPECT_TRUE(run.stream->cancelled());
  }

  static void ExpectError(const RawResponse& response, int32_t code, std::string_view type) {
    const auto [got, body] = Parsed(response);
    EXPECT_EQ(got, code);
    EXPECT_EQ(Member(body, "error.code"), Json(code));
    EXPECT_EQ(Member(body, "error.type"), Json(type));
    EXPECT_TRUE(Member(body, "error.param").is_null());
    EXPECT_THAT(Member(body, "error.message").as_string(), StartsWith("Idempotency-Key: "));
  }

  HandClock hand_clock_;
};

TEST_F(IdempotencyTest, AFinishedAnswerIsHadAgainAndNotMadeAgain) {
  Start();
  const RawResponse first = RunOnce(Keyed("k", kBody));
  EXPECT_EQ(first.code, 200);
  EXPECT_EQ(first.Header("idempotent-replayed"), "");
  const RawResponse again = Again(Keyed("k", kBody));
  EXPECT_EQ(again.code, 200);
  EXPECT_EQ(again.body, first.body);
  EXPECT_EQ(again.Header("idempotent-replayed"), "true");
  EXPECT_EQ(again.Header("content-type"), first.Header("content-type"));
}

TEST_F(IdempotencyTest, WithoutAKeyEveryRequestRuns) {
  Start();
  RunOnce(PostJson("/v1/completions", kBody));
  RunOnce(PostJson("/v1/completions", kBody));
}

TEST_F(IdempotencyTest, AStreamIsHadAgainFromItsFirstChunk) {
  Start();
  RawClient client(port_);
  client.Send(Keyed("k", kStreamBody));
  const auto run = backend_.Next();
  run.stream->Push(Piece("one "));
  client.ReadUntil("one ");
  run.stream->Push(Piece("two", FinishReason::kStop));
  run.stream->Close(absl::OkStatus());
  const auto first = client.Read();
  ASSERT_TRUE(first.has_value());
  EXPECT_THAT(first->body, EndsWith("data: [DONE]\n\n"));
  const RawResponse again = Again(Keyed("k", kStreamBody));
  EXPECT_EQ(again.body, first->body);
  EXPECT_EQ(again.Header("content-type"), "text/event-stream; charset=utf-8");
}

TEST_F(IdempotencyTest, ARequestThatComesWhileItsFirstRunsJoinsIt) {
  Start();
  for (const char* body : {kStreamBody, kBody}) {
    RawClient first(port_);
    first.Send(Keyed(body, body));
    const auto run = backend_.Next();
    run.stream->Push(Piece("one "));
    RawClient second(port_);
    second.Send(Keyed(body, body));
    if (body == kStreamBody) second.ReadUntil("one ");
    Answer(run, "two");
    const auto a = first.Read();
    const auto b = second.Read();
    ASSERT_TRUE(a.has_value() && b.has_value());
    EXPECT_EQ(a->body, b->body);
    EXPECT_THAT(a->body, HasSubstr("two"));
    EXPECT_TRUE(backend_.HasNone());
  }
}

TEST_F(IdempotencyTest, AClientThatLeavesFindsItsAnswerWhenItComesBack) {
  Start();
  RawClient client(port_);
  client.Send(Keyed("k", kStreamBody));
  const auto run = backend_.Next();
  run.stream->Push(Piece("one "));
  client.ReadUntil("one ");
  client.Close();
  WaitUntilLeavingIsNoticed();
  EXPECT_FALSE(run.stream->cancelled());
  Answer(run, "two");
  const RawResponse again = Again(Keyed("k", kStreamBody));
  EXPECT_THAT(again.body, HasSubstr("one "));
  EXPECT_THAT(again.body, HasSubstr("two"));
  EXPECT_THAT(again.body, EndsWith("data: [DONE]\n\n"));
}

TEST_F(IdempotencyTest, AKeyWithAnotherRequestIs422) {
  Start();
  RunOnce(Keyed("k", kBody));
  ExpectError(Again(Keyed("k", kStreamBody)), 422, "UnprocessableEntityError");
  const char* chat = R"({"messages":[{"role":"user","content":"hi"}]})";
  ExpectError(Again(Keyed("k", chat, "", "/v1/chat/completions")), 422, "UnprocessableEntityError");
  EXPECT_EQ(Again(Keyed("k", kBody)).code, 200);
}

TEST_F(IdempotencyTest, ChatsHaveKeysToo) {
  Start();
  const std::string request =
      Keyed("k", R"({"messages":[{"role":"user","content":"hi"}]})", "", "/v1/chat/completions");
  const RawResponse first = RunOnce(request);
  EXPECT_THAT(first.body, HasSubstr("chat.completion"));
  EXPECT_EQ(Again(request).body, first.body);
}

TEST_F(IdempotencyTest, KeysBelongToTheApiKeyTheyCameWith) {
  PublicServerOptions options;
  options.api_keys = {"one", "two"};
  Start(options);
  const std::string of_one = Keyed("k", kBody, "Authorization: Bearer one\r\n");
  const std::string of_two = Keyed("k", kBody, "Authorization: Bearer two\r\n");
  const RawResponse first = RunOnce(of_one, "for one");
  EXPECT_THAT(RunOnce(of_two, "for two").body, HasSubstr("for two"));
  EXPECT_EQ(Again(of_one).body, first.body);
}

TEST_F(IdempotencyTest, ARefusalLeavesTheKeyFree) {
  Start();
  EXPECT_EQ(Again(Keyed("k", R"({"prompt":"hi","max_tokens":"many"})")).code, 400);
  backend_.SetRefusal(ResourceExhausted("full"));
  EXPECT_EQ(Again(Keyed("k", kBody)).code, 429);
  backend_.SetRefusal(Unavailable("the server is shutting down"));
  EXPECT_EQ(Again(Keyed("k", kBody)).code, 503);
  backend_.SetRefusal(absl::OkStatus());
  EXPECT_EQ(RunOnce(Keyed("k", kBody)).code, 200);
}

TEST_F(IdempotencyTest, AFailureThatHasRunIsAnAnswerLikeAnother) {
  Start();
  RawClient client(port_);
  client.Send(Keyed("k", kBody));
  const auto run = backend_.Next();
  run.stream->Push(Piece("one "));
  run.stream->Close(absl::AbortedError("it was in flight in two losses"));
  const auto first = client.Read();
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->code, 500);
  const RawResponse again = Again(Keyed("k", kBody));
  EXPECT_EQ(again.code, 500);
  EXPECT_EQ(again.body, first->body);
}

// Who asks again behind a deadline or a restart wants an answer, not the error once more; the
// tokens that came before it are no reason to keep it.
TEST_F(IdempotencyTest, ADeadlineAndAShutdownAreNoAnswersToKeep) {
  Start();
  for (const absl::Status& why : {DeadlineExceeded("the request's deadline has passed"),
                                  Unavailable("the server is shutting down")}) {
    for (const char* body : {kBody, kStreamBody}) {
      RawClient client(port_);
      client.Send(Keyed(body, body));
      const auto run = backend_.Next();
      run.stream->Push(Piece("one "));
      if (body == kStreamBody) client.ReadUntil("one ");
      run.stream->Close(why);
      const auto broken = client.Read();
      ASSERT_TRUE(broken.has_value());
      EXPECT_THAT(broken->body, HasSubstr(Message(why)));
    }
  }
  for (const char* body : {kBody, kStreamBody}) {
    const RawResponse again = RunOnce(Keyed(body, body), "two");
    EXPECT_EQ(again.code, 200);
    EXPECT_THAT(again.body, HasSubstr("two"));
    EXPECT_EQ(again.Header("idempotent-replayed"), "");
  }
}

TEST_F(IdempotencyTest, AFullServerStillGivesWhatItHas) {
  Start();
  const RawResponse first = RunOnce(Keyed("k", kBody));
  RawClient running(port_);
  running.Send(Keyed("r", kBody));
  const auto run = backend_.Next();
  backend_.SetRoom(ResourceExhausted("full"));
  EXPECT_EQ(Again(PostJson("/v1/completions", kBody)).code, 429);
  EXPECT_EQ(Again(Keyed("new", kBody)).code, 429);
  EXPECT_EQ(Again(Keyed("k", kBody)).body, first.body);
  ExpectError(Again(Keyed("k", kStreamBody)), 422, "UnprocessableEntityError");
  RawClient joined(port_);
  joined.Send(Keyed("r", kBody));
  Answer(run, "two");
  EXPECT_EQ(running.Read()->body, joined.Read()->body);
  EXPECT_TRUE(backend_.HasNone());
}

TEST_F(IdempotencyTest, WhatKeysWereWorthIsCounted) {
  Start();
  RunOnce(Keyed("k", kBody));
  Again(Keyed("k", kBody));
  Again(Keyed("k", kBody));
  Again(Keyed("k", kStreamBody));
  RawClient first(port_);
  first.Send(Keyed("s", kStreamBody));
  const auto run = backend_.Next();
  run.stream->Push(Piece("one "));
  for (int i = 0; i < 3; ++i) {
    RawClient joined(port_);
    joined.Send(Keyed("s", kStreamBody));
    joined.ReadUntil("one ");
  }
  Answer(run, "two");
  EXPECT_EQ(first.Read()->code, 200);
  RunOnce(PostJson("/v1/completions", kBody));
  const std::string page = metrics_.Render();
  for (const char* line : {R"(outcome="started"} 2)", R"(outcome="replayed"} 2)",
                           R"(outcome="joined"} 3)", R"(outcome="conflict"} 1)"}) {
    EXPECT_THAT(
        page,
        HasSubstr(std::string(R"(polyreme_idempotent_requests_total{model_name="tiny",)") + line));
  }
}

TEST_F(IdempotencyTest, KeysThatAreNoneAreNamed) {
  Start();
  for (const std::string& key : {std::string(), std::string(256, 'k'), std::string("\"open"),
                                 std::string("\"a\" b"), std::string("\"a\\n\"")}) {
    ExpectError(Again(Keyed(key, kBody)), 400, "BadRequestError");
  }
  ExpectError(Again(Keyed("k", kBody, "Idempotency-Key: j\r\n")), 400, "BadRequestError");
  EXPECT_EQ(RunOnce(Keyed(std::string(255, 'k'), kBody)).code, 200);
}

TEST(IdempotencyKey, MayBeQuotedOrBare) {
  EXPECT_EQ(*ParseIdempotencyKey("8e03978e-40d5"), "8e03978e-40d5");
  EXPECT_EQ(*ParseIdempotencyKey("\"8e03978e-40d5\""), "8e03978e-40d5");
  EXPECT_EQ(*ParseIdempotencyKey(R"("a\"b\\c d")"), R"(a"b\c d)");
  for (const char* wrong :
       {"", "\"\"", "\"a", "\"a\\\"", "\"a\\x\"", "\"a\";p=1", "a\tb", "\xc3\xa9"}) {
    EXPECT_FALSE(ParseIdempotencyKey(wrong).ok()) << wrong;
  }
}

TEST_F(IdempotencyTest, WhoEndedFirstMakesRoomAndWhoRunsDoesNot) {
  PublicServerOptions options;
  options.idempotency.max_keys = 2;
  Start(options);
  RawClient a(port_);
  a.Send(Keyed("a", kBody));
  const auto run_a = backend_.Next();
  RawClient b(port_);
  b.Send(Keyed("b", kBody));
  const auto run_b = backend_.Next();
  const RawResponse refused = Again(Keyed("c", kBody));
  ExpectError(refused, 429, "RateLimitError");
  EXPECT_EQ(refused.Header("retry-after"), "1");
  EXPECT_EQ(Again(PostJson("/v1/models", "{}")).code, 405) << "others are served";

  Answer(run_b, "b");
  EXPECT_EQ(b.Read()->code, 200);
  Answer(run_a, "a");
  EXPECT_EQ(a.Read()->code, 200);
  EXPECT_EQ(RunOnce(Keyed("c", kBody)).code, 200);
  EXPECT_EQ(Again(Keyed("a", kBody)).code, 200);
  RunOnce(Keyed("b", kBody));  // it had ended first
}

TEST_F(IdempotencyTest, TheBytesOfAllAnswersAreBounded) {
  const std::string text(1000, 't');
  PublicServerOptions options;
  options.idempotency.max_bytes = 3500;
  Start(options);
  for (const char* key : {"a", "b", "c"}) {
    EXPECT_EQ(RunOnce(Keyed(key, kBody), text).code, 200);
  }
  EXPECT_EQ(Again(Keyed("c", kBody)).code, 200);
  EXPECT_EQ(Again(Keyed("b", kBody)).code, 200);
  RunOnce(Keyed("a", kBody), "short");
}

TEST_F(IdempotencyTest, AnAnswerThatIsTooLargeReachesItsClientAndIsNotKept) {
  PublicServerOptions options;
  options.idempotency.max_answer_bytes = 1000;
  Start(options);
  const RawResponse first = RunOnce(Keyed("k", kBody), std::string(2000, 't'));
  EXPECT_EQ(first.code, 200);
  EXPECT_THAT(first.body, HasSubstr(std::string(2000, 't')));
  ExpectError(Again(Keyed("k", kBody)), 409, "ConflictError");
}

TEST_F(IdempotencyTest, AStreamThatIsTooLargeEndsWithAnErrorAndIsNotRunAgain) {
  PublicServerOptions options;
  options.idempotency.max_answer_bytes = 1000;
  Start(options);
  RawClient client(port_);
  client.Send(Keyed("k", kStreamBody));
  const auto run = backend_.Next();
  run.stream->Push(Piece("one "));
  client.ReadUntil("one ");
  run.stream->Push(Piece(std::string(2000, 't')));
  const auto response = client.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_THAT(response->body, HasSubstr("RateLimitError"));
  EXPECT_THAT(response->body, EndsWith("data: [DONE]\n\n"));
  EXPECT_TRUE(backend_.WaitUntilCancelled());
  ExpectError(Again(Keyed("k", kStreamBody)), 409, "ConflictError");
}

TEST_F(IdempotencyTest, ALongAnswerIsHadAgainAtTheReadersPace) {
  Start();
  RawClient client(port_);
  client.Send(Keyed("k", kStreamBody));
  const auto run = backend_.Next();
  // More than a connection may have pending.
  for (int i = 0; i < 100; ++i) run.stream->Push(Piece(std::string(64 << 10, 't')));
  Answer(run, "end");
  const auto first = client.Read();
  ASSERT_TRUE(first.has_value());
  EXPECT_GT(std::ssize(first->body), limits::kMaxHttpPendingBytes);
  EXPECT_THAT(first->body, EndsWith("data: [DONE]\n\n"));
  EXPECT_TRUE(Again(Keyed("k", kStreamBody)).body == first->body);
}

TEST_F(IdempotencyTest, WhatPassesLeavesTheKeyFreeBeforeItIsHeard) {
  IdempotencyStore store({}, hand_clock_, metrics_);
  const auto thread = std::make_shared<TaskPool>(1, 8);
  const KeyedRequest request = {.id = "k", .fingerprint = "f", .overflow = "too large"};
  const auto client = std::make_shared<KeptReplies>(thread);
  const std::shared_ptr<HttpResponder> recorder = *store.Admit(request, client);
  recorder->StartStream({});
  recorder->DoNotKeep();
  recorder->Write(KeptEnd(ResourceExhausted("full")));
  v1::GenerateReply reply;
  absl::Status end;
  const absl::Time deadline = MonotonicNow() + absl::Seconds(30);
  while (client->Poll(reply, end) != ReplySource::Polled::kEnd && MonotonicNow() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_EQ(end.code(), absl::StatusCode::kResourceExhausted) << end;
  EXPECT_FALSE(store.Knows("k")) << "the recorder has not finished yet";
  const auto again = std::make_shared<KeptReplies>(thread);
  const std::shared_ptr<HttpResponder> second = *store.Admit(request, again);
  EXPECT_NE(second, nullptr) << "it joined the run that was refused";
  recorder->Finish();
  EXPECT_TRUE(store.Knows("k")) << "the first one's end is not the second one's";
  thread->Stop();
}

TEST_F(IdempotencyTest, AnAnswerIsKeptForItsTime) {
  StartByHand();
  RunOnce(Keyed("k", kBody));
  hand_clock_.Advance(9 * 60);
  EXPECT_EQ(Again(Keyed("k", kBody)).code, 200);
  hand_clock_.Advance(2 * 60);
  EXPECT_EQ(RunOnce(Keyed("k", kBody)).Header("idempotent-replayed"), "");
}

TEST_F(IdempotencyTest, NobodyIsWaitedForLongerThanThat) {
  StartByHand();
  RawClient client(port_);
  client.Send(Keyed("k", kStreamBody));
  const auto run = backend_.Next();
  run.stream->Push(Piece("one "));
  client.ReadUntil("one ");
  client.Close();
  WaitUntilLeavingIsNoticed();
  hand_clock_.Advance(9 * 60);
  EXPECT_TRUE(run.stream->Push(Piece("two ")));
  RawClient back(port_);
  back.Send(Keyed("k", kStreamBody));
  EXPECT_THAT(back.ReadUntil("two "), HasSubstr("one "));
  back.Close();
  WaitUntilLeavingIsNoticed();
  hand_clock_.Advance(11 * 60);
  run.stream->Push(Piece("three"));
  EXPECT_TRUE(backend_.WaitUntilCancelled());
  EXPECT_TRUE(run.stream->cancelled());
  RunOnce(Keyed("k", kStreamBody));
}

TEST_F(IdempotencyTest, AServerThatStopsCancelsWhatRunsForNobody) {
  Start();
  RawClient client(port_);
  client.Send(Keyed("k", kStreamBody));
  const auto run = backend_.Next();
  run.stream->Push(Piece("one "));
  client.ReadUntil("one ");
  client.Close();
  WaitUntilLeavingIsNoticed();
  server_.reset();
  EXPECT_TRUE(run.stream->cancelled());
}

}  // namespace
}  // namespace polyreme::api
