// A gRPC call that comes again under its idempotency-key.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/coordinator/api/grpc_fixture.h"

namespace polyreme::api {
namespace {

using engine::FinishReason;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class GrpcIdempotencyTest : public GrpcTest {
 protected:
  // A call under way.
  struct Call {
    std::unique_ptr<grpc::ClientContext> context;
    std::unique_ptr<grpc::ClientReader<v1::GenerateReply>> reader;

    std::string Text() {
      v1::GenerateReply reply;
      return reader->Read(&reply) ? reply.text() : "(end)";
    }
    bool is_replay() const {
      return context->GetServerInitialMetadata().count("idempotent-replayed") == 1;
    }
  };
  // What a call has given, to its end.
  struct Heard {
    std::vector<std::string> texts;
    std::vector<std::string> bytes;  // of the replies
    grpc::Status status;
    bool is_replay = false;
  };

  Call Ask(const std::string& key, const v1::GenerateRequest& request,
           const std::string& api_key = "") {
    Call call;
    call.context = Context(api_key);
    call.context->AddMetadata("idempotency-key", key);
    call.reader = stub_->Generate(call.context.get(), request);
    return call;
  }
  static Heard Hear(Call call) {
    Heard heard;
    v1::GenerateReply reply;
    while (call.reader->Read(&reply)) {
      heard.texts.push_back(reply.text());
      heard.bytes.push_back(reply.SerializeAsString());
    }
    heard.status = call.reader->Finish();
    heard.is_replay = call.is_replay();
    return heard;
  }
  static void Answer(const ScriptedBackend::Submitted& run, std::string_view text) {
    run.stream->Push(Piece(text));
    run.stream->Push(Piece("!", FinishReason::kStop));
    run.stream->Close(absl::OkStatus());
  }
  Heard RunOnce(const std::string& key, const v1::GenerateRequest& request,
                std::string_view text = "yes") {
    Call call = Ask(key, request);
    Answer(backend_.Next(), text);
    return Hear(std::move(call));
  }
  // A call that must not run.
  Heard Again(const std::string& key, const v1::GenerateRequest& request) {
    Heard heard = Hear(Ask(key, request));
    EXPECT_TRUE(backend_.HasNone());
    return heard;
  }
  // Returns when the server has noticed that every client that left before this call is gone.
  void WaitUntilLeavingIsNoticed() {
    auto context = Context();
    auto reader = stub_->Generate(context.get(), TextRequest("other"));
    const auto run = backend_.Next();
    context->TryCancel();
    ASSERT_TRUE(backend_.WaitUntilCancelled());
    EXPECT_TRUE(run.stream->cancelled());
  }
};

TEST_F(GrpcIdempotencyTest, AFinishedAnswerIsHadAgainReplyByReply) {
  StartGrpc();
  const Heard first = RunOnce("k", TextRequest("ab"));
  EXPECT_THAT(first.texts, ElementsAre("yes", "!"));
  EXPECT_TRUE(first.status.ok());
  EXPECT_FALSE(first.is_replay);
  const Heard again = Again("k", TextRequest("ab"));
  EXPECT_EQ(again.bytes, first.bytes);
  EXPECT_TRUE(again.status.ok());
  EXPECT_TRUE(again.is_replay);
  v1::GenerateReply reply;
  ASSERT_TRUE(reply.ParseFromString(again.bytes.front()));
  EXPECT_EQ(reply.num_prompt_tokens(), 1);
  EXPECT_THAT(RunOnce("other", TextRequest("ab")).texts, ElementsAre("yes", "!"));
}

TEST_F(GrpcIdempotencyTest, ACallThatComesWhileItsFirstRunsJoinsIt) {
  StartGrpc();
  Call first = Ask("k", TextRequest("ab"));
  const auto run = backend_.Next();
  run.stream->Push(Piece("one "));
  EXPECT_EQ(first.Text(), "one ");
  Call second = Ask("k", TextRequest("ab"));
  EXPECT_EQ(second.Text(), "one ");
  EXPECT_TRUE(second.is_replay());
  Answer(run, "two");
  EXPECT_THAT(Hear(std::move(first)).texts, ElementsAre("two", "!"));
  EXPECT_THAT(Hear(std::move(second)).texts, ElementsAre("two", "!"));
  EXPECT_TRUE(backend_.HasNone());
}

TEST_F(GrpcIdempotencyTest, AClientThatLeavesFindsItsAnswerWhenItComesBack) {
  StartGrpc();
  Call call = Ask("k", TextRequest("ab"));
  const auto run = backend_.Next();
  run.stream->Push(Piece("one "));
  EXPECT_EQ(call.Text(), "one ");
  call.context->TryCancel();
  EXPECT_EQ(Hear(std::move(call)).status.error_code(), grpc::StatusCode::CANCELLED);
  WaitUntilLeavingIsNoticed();
  EXPECT_FALSE(run.stream->cancelled());
  Answer(run, "two");
  EXPECT_THAT(Again("k", TextRequest("ab")).texts, ElementsAre("one ", "two", "!"));
}

TEST_F(GrpcIdempotencyTest, AKeyWithAnotherRequestIsRefusedOnEitherFace) {
  StartGrpc();
  RunOnce("k", TextRequest("ab"));
  const Heard other = Again("k", TextRequest("ba"));
  EXPECT_EQ(other.status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_THAT(other.status.error_message(), HasSubstr("Idempotency-Key: this key came with"));
  const char* post = R"({"prompt":"ab"})";
  EXPECT_EQ(
      Parsed(Exchange(port_, PostJson("/v1/completions", post, "Idempotency-Key: k\r\n"))).first,
      422);
  EXPECT_TRUE(backend_.HasNone());

  RawClient http(port_);
  http.Send(PostJson("/v1/completions", post, "Idempotency-Key: \"h\"\r\n"));
  Answer(backend_.Next(), "yes");
  EXPECT_EQ(http.Read()->code, 200);
  EXPECT_EQ(Again("h", TextRequest("ab")).status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(GrpcIdempotencyTest, KeysBelongToTheApiKeyTheyCameWith) {
  PublicServerOptions options;
  options.api_keys = {"one", "two"};
  StartGrpc(options);
  for (const char* who : {"one", "two"}) {
    Call call = Ask("k", TextRequest("ab"), who);
    Answer(backend_.Next(), who);
    EXPECT_THAT(Hear(std::move(call)).texts, ElementsAre(who, "!"));
  }
  EXPECT_THAT(Hear(Ask("k", TextRequest("ab"), "one")).texts, ElementsAre("one", "!"));
  EXPECT_TRUE(backend_.HasNone());
}

TEST_F(GrpcIdempotencyTest, AFullServerStillGivesWhatItHas) {
  StartGrpc();
  const Heard first = RunOnce("k", TextRequest("ab"));
  Call running = Ask("r", TextRequest("ab"));
  const auto run = backend_.Next();
  backend_.SetRoom(ResourceExhausted("full"));
  EXPECT_EQ(Again("new", TextRequest("ab")).status.error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Again("k", TextRequest("ab")).bytes, first.bytes);
  EXPECT_EQ(Again("k", TextRequest("ba")).status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  Call joined = Ask("r", TextRequest("ab"));
  Answer(run, "two");
  EXPECT_THAT(Hear(std::move(joined)).texts, ElementsAre("two", "!"));
  EXPECT_THAT(Hear(std::move(running)).texts, ElementsAre("two", "!"));
}

TEST_F(GrpcIdempotencyTest, WhatPassesLeavesTheKeyFreeAndAFailureDoesNot) {
  StartGrpc();
  v1::GenerateRequest invalid = TextRequest("ab");
  invalid.set_n(9);
  EXPECT_EQ(Again("k", invalid).status.error_message(), "n: expected 1 to 8, got 9");
  backend_.SetRefusal(ResourceExhausted("full"));
  EXPECT_EQ(Again("k", TextRequest("ab")).status.error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  backend_.SetRefusal(absl::OkStatus());
  for (const absl::Status& why : {DeadlineExceeded("the request's deadline has passed"),
                                  Unavailable("the server is shutting down"),
                                  absl::Status(absl::AbortedError("two losses"))}) {
    Call call = Ask("k", TextRequest("ab"));
    const auto run = backend_.Next();
    run.stream->Push(Piece("one "));
    run.stream->Close(why);
    const Heard heard = Hear(std::move(call));
    EXPECT_THAT(heard.texts, ElementsAre("one "));
    EXPECT_EQ(static_cast<int>(heard.status.error_code()), static_cast<int>(why.code()));
    EXPECT_EQ(heard.status.error_message(), Message(why));
  }
  const Heard again = Again("k", TextRequest("ab"));
  EXPECT_TRUE(again.is_replay);
  EXPECT_THAT(again.texts, ElementsAre("one "));
  EXPECT_EQ(again.status.error_code(), grpc::StatusCode::ABORTED);
}

TEST_F(GrpcIdempotencyTest, KeysThatAreNoneAreNamed) {
  StartGrpc();
  EXPECT_EQ(Again("\"open", TextRequest("ab")).status.error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  Call twice;
  twice.context = Context();
  twice.context->AddMetadata("idempotency-key", "a");
  twice.context->AddMetadata("idempotency-key", "b");
  twice.reader = stub_->Generate(twice.context.get(), TextRequest("ab"));
  EXPECT_THAT(Hear(std::move(twice)).status.error_message(), HasSubstr("one such header"));
}

TEST_F(GrpcIdempotencyTest, AnAnswerThatIsTooLargeEndsWithAnErrorAndIsNotRunAgain) {
  PublicServerOptions options;
  options.idempotency.max_answer_bytes = 1000;
  StartGrpc(options);
  Call call = Ask("k", TextRequest("ab"));
  const auto run = backend_.Next();
  run.stream->Push(Piece("one "));
  EXPECT_EQ(call.Text(), "one ");
  run.stream->Push(Piece(std::string(2000, 't')));
  const Heard heard = Hear(std::move(call));
  EXPECT_TRUE(heard.texts.empty());
  EXPECT_EQ(heard.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(backend_.WaitUntilCancelled());
  EXPECT_EQ(Again("k", TextRequest("ab")).status.error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
}

// More than a client may have pending, and single replies of more than that.
TEST_F(GrpcIdempotencyTest, ALongAnswerIsHadAgainAtTheReadersPace) {
  StartGrpc();
  Call call = Ask("k", TextRequest("ab"));
  const auto run = backend_.Next();
  for (const size_t size : {size_t{1} << 20, size_t{10}, size_t{3} << 19}) {
    run.stream->Push(Piece(std::string(size, 't')));
  }
  for (int i = 0; i < 100; ++i) run.stream->Push(Piece(std::string(64 << 10, 't')));
  Answer(run, "end");
  const Heard first = Hear(std::move(call));
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  EXPECT_EQ(first.texts.size(), size_t{105});
  EXPECT_TRUE(Again("k", TextRequest("ab")).bytes == first.bytes);
}

TEST_F(GrpcIdempotencyTest, AServerThatStopsCancelsWhatRunsForNobody) {
  StartGrpc();
  Call call = Ask("k", TextRequest("ab"));
  const auto run = backend_.Next();
  run.stream->Push(Piece("one "));
  EXPECT_EQ(call.Text(), "one ");
  call.context->TryCancel();
  EXPECT_FALSE(Hear(std::move(call)).status.ok());
  WaitUntilLeavingIsNoticed();
  EXPECT_FALSE(run.stream->cancelled());
  server_.reset();
  EXPECT_TRUE(run.stream->cancelled());
}

}  // namespace
}  // namespace polyreme::api
