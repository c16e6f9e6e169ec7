#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "proto/health.grpc.pb.h"
#include "tests/coordinator/api/grpc_fixture.h"

namespace polyreme::api {
namespace {

using engine::FinishReason;
namespace health = grpc::health::v1;

TEST_F(GrpcTest, StreamsPiecesAsTheyCome) {
  StartGrpc();
  v1::GenerateRequest request = TextRequest("ab<|end|>");
  request.set_request_id("r");
  request.set_n(2);
  request.set_max_tokens(9);
  request.set_temperature(0.5);
  request.set_seed(~uint64_t{0});
  request.add_stop("x");
  request.set_logprobs(1);
  auto context = Context();
  auto reader = stub_->Generate(context.get(), request);
  auto [submitted, stream] = backend_.Next();
  EXPECT_EQ(submitted.request_id, "r");
  EXPECT_EQ(submitted.prompt, (std::vector<TokenId>{256, 260}));
  EXPECT_EQ(submitted.n, 2);
  EXPECT_EQ(submitted.max_tokens, 9);
  EXPECT_EQ(submitted.temperature, 0.5);
  EXPECT_EQ(submitted.seed, ~uint64_t{0});
  EXPECT_EQ(submitted.stop, std::vector<std::string>{"x"});
  EXPECT_LT(submitted.deadline, absl::InfiniteFuture());

  engine::OutputPiece first = Piece("a");
  first.scores = {Score('a', -0.5f, {{'b', -1.5f}})};
  first.num_cached_tokens = 1;
  stream->Push(std::move(first));
  v1::GenerateReply reply;
  ASSERT_TRUE(reader->Read(&reply));  // before the rest is there
  EXPECT_EQ(reply.text(), "a");
  EXPECT_EQ(reply.num_prompt_tokens(), 2);
  EXPECT_EQ(reply.num_cached_tokens(), 1);
  ASSERT_EQ(reply.scores_size(), 1);
  EXPECT_EQ(reply.scores(0).top(0).logprob(), -1.5f);
  engine::OutputPiece last = Piece("c", FinishReason::kStop);
  last.choice = 1;
  last.stop_string = "x";
  stream->Push(std::move(last));
  stream->Close(absl::OkStatus());
  ASSERT_TRUE(reader->Read(&reply));
  EXPECT_EQ(reply.choice(), 1);
  EXPECT_EQ(reply.token_ids_size(), 1);
  EXPECT_EQ(reply.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(reply.stop_string(), "x");
  EXPECT_EQ(reply.num_prompt_tokens(), 0);
  EXPECT_FALSE(reader->Read(&reply));
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_FALSE(stream->cancelled());
}

TEST_F(GrpcTest, CarriesManyPiecesInOrder) {
  StartGrpc();
  auto context = Context();
  auto reader = stub_->Generate(context.get(), TextRequest("a"));
  auto [submitted, stream] = backend_.Next();
  for (int i = 0; i < 500; ++i) ASSERT_TRUE(stream->Push(Piece(std::to_string(i) + ",")));
  stream->Close(absl::OkStatus());
  v1::GenerateReply reply;
  for (int i = 0; i < 500; ++i) {
    ASSERT_TRUE(reader->Read(&reply));
    ASSERT_EQ(reply.text(), std::to_string(i) + ",");
  }
  EXPECT_FALSE(reader->Read(&reply));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(GrpcTest, RendersChatsWhoseContentForgesNoTurn) {
  StartGrpc();
  v1::GenerateRequest request;
  v1::Message& message = *request.mutable_prompt()->mutable_chat()->add_messages();
  message.set_role("user");
  message.set_content("<|end|>");
  auto context = Context();
  auto reader = stub_->Generate(context.get(), request);
  const auto submitted = backend_.Next().request;
  EXPECT_EQ(std::count(submitted.prompt.begin(), submitted.prompt.end(), 260), 2);
  EXPECT_EQ(submitted.max_tokens, 200 - std::ssize(submitted.prompt));
}

TEST_F(GrpcTest, RefusesWhatHttpRefuses) {
  StartGrpc();
  EXPECT_EQ(Refusal(v1::GenerateRequest()).error_message(),
            "prompt: expected text, tokens or chat, got none");
  v1::GenerateRequest request = TextRequest("a");
  request.set_n(9);
  EXPECT_EQ(Refusal(request).error_message(), "n: expected 1 to 8, got 9");
  request = TextRequest("a");
  request.set_temperature(std::numeric_limits<double>::quiet_NaN());
  EXPECT_EQ(Refusal(request).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request = TextRequest("a");
  request.set_model("other");
  EXPECT_EQ(Refusal(request).error_code(), grpc::StatusCode::NOT_FOUND);
  request = v1::GenerateRequest();
  request.mutable_prompt()->mutable_tokens()->add_ids(262);
  EXPECT_EQ(Refusal(request).error_message(),
            "prompt[0]: expected a token id from 0 to 261, got 262");
  EXPECT_EQ(Refusal(TextRequest(std::string(33 << 20, 'a'))).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(backend_.HasNone());
  backend_.SetRefusal(ResourceExhausted("full"));
  EXPECT_EQ(Refusal(TextRequest("a")).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(GrpcTest, CancelsWhatAClientCancels) {
  StartGrpc();
  auto context = Context();
  auto reader = stub_->Generate(context.get(), TextRequest("a"));
  auto [submitted, stream] = backend_.Next();
  context->TryCancel();
  EXPECT_TRUE(backend_.WaitUntilCancelled());
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(GrpcTest, CancelsAtTheDeadline) {
  StartGrpc();
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(MonotonicNow() + absl::Milliseconds(300)));
  auto reader = stub_->Generate(&context, TextRequest("a"));
  backend_.Next();
  EXPECT_TRUE(backend_.WaitUntilCancelled());
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(GrpcTest, TellsHowAStreamFailed) {
  StartGrpc();
  auto context = Context();
  auto reader = stub_->Generate(context.get(), TextRequest("a"));
  backend_.Next().stream->Close(Unavailable("rank 3 was lost"));
  v1::GenerateReply reply;
  EXPECT_FALSE(reader->Read(&reply));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "rank 3 was lost");
}

TEST_F(GrpcTest, TokenizesAndListsModels) {
  StartGrpc();
  v1::TokenizeRequest request;
  request.mutable_prompt()->set_text("abc");
  v1::TokenizeReply tokens;
  ASSERT_TRUE(stub_->Tokenize(Context().get(), request, &tokens).ok());
  EXPECT_EQ(tokens.tokens_size(), 1);
  EXPECT_EQ(tokens.tokens(0), 257);
  EXPECT_EQ(tokens.max_model_len(), 200);
  v1::ModelsReply models;
  ASSERT_TRUE(stub_->Models(Context().get(), v1::ModelsRequest(), &models).ok());
  ASSERT_EQ(models.models_size(), 2);
  EXPECT_EQ(models.models(0).name(), "tiny");
  EXPECT_EQ(models.models(1).name(), "org/tiny");
}

TEST_F(GrpcTest, AsksForAKeyOnEachCallButHealth) {
  PublicServerOptions options;
  options.api_keys = {"secret"};
  StartGrpc(options);
  EXPECT_EQ(Refusal(TextRequest("a")).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  v1::ModelsReply models;
  EXPECT_EQ(stub_->Models(Context().get(), {}, &models).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(models.models_size(), 0);
  v1::TokenizeReply tokens;
  EXPECT_EQ(stub_->Tokenize(Context("wrong").get(), {}, &tokens).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(stub_->Models(Context("secret").get(), {}, &models).ok());
  health::HealthCheckResponse response;
  EXPECT_TRUE(health::Health::NewStub(channel_)->Check(Context().get(), {}, &response).ok());
}

TEST_F(GrpcTest, TellsHealthNowAndWhenItChanges) {
  StartGrpc();
  auto stub = health::Health::NewStub(channel_);
  health::HealthCheckResponse response;
  ASSERT_TRUE(stub->Check(Context().get(), {}, &response).ok());
  EXPECT_EQ(response.status(), health::HealthCheckResponse::SERVING);
  health::HealthCheckRequest named;
  named.set_service("polyreme.v1.Generation");
  ASSERT_TRUE(stub->Check(Context().get(), named, &response).ok());
  named.set_service("other");
  EXPECT_EQ(stub->Check(Context().get(), named, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);

  auto context = Context();
  auto watch = stub->Watch(context.get(), {});
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::SERVING);
  backend_.SetServing(false);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::NOT_SERVING);
}

// The reflection protocol's messages by hand: list_services (field 7) of a ServerReflectionRequest.
TEST_F(GrpcTest, ReflectsItsServices) {
  StartGrpc();
  grpc::GenericStub generic(channel_);
  grpc::CompletionQueue queue;
  auto context = Context();
  auto call = generic.PrepareCall(
      context.get(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  call->StartCall(nullptr);
  ASSERT_TRUE(wait());
  const grpc::Slice request("\x3a\x01*", 3);
  call->Write(grpc::ByteBuffer(&request, 1), nullptr);
  ASSERT_TRUE(wait());
  grpc::ByteBuffer reply;
  call->Read(&reply, nullptr);
  ASSERT_TRUE(wait());
  grpc::Slice slice;
  ASSERT_TRUE(reply.DumpToSingleSlice(&slice).ok());
  const std::string text(reinterpret_cast<const char*>(slice.begin()), slice.size());
  EXPECT_NE(text.find("polyreme.v1.Generation"), std::string::npos);
  EXPECT_NE(text.find("grpc.health.v1.Health"), std::string::npos);
  context->TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
  queue.Shutdown();
}

TEST_F(GrpcTest, RefusesAPortInUse) {
  StartGrpc();
  PublicServerOptions options;
  options.grpc = GrpcOptions{.port = server_->bound_grpc_port()};
  const PublicServerParts parts{.backend = backend_,
                                .tokenizer = *tokenizer_,
                                .model = TestModel(),
                                .metrics = metrics_,
                                .clock = clock_};
  const auto second = PublicServer::Start(options, parts);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(GrpcTest, StopCutsCallsThatDoNotEnd) {
  StartGrpc();
  auto context = Context();
  auto reader = stub_->Generate(context.get(), TextRequest("a"));
  backend_.Next();
  auto watch_context = Context();
  auto watch = health::Health::NewStub(channel_)->Watch(watch_context.get(), {});
  health::HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  server_->Stop(MonotonicNow());
  EXPECT_TRUE(backend_.WaitUntilCancelled());
  EXPECT_FALSE(reader->Finish().ok());
  EXPECT_FALSE(watch->Finish().ok());
}

}  // namespace
}  // namespace polyreme::api
