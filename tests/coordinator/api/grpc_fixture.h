// The public server with its gRPC face, and a client of it.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "proto/api.grpc.pb.h"
#include "tests/coordinator/api/api_fixture.h"

namespace polyreme::api {

class GrpcTest : public ApiTest {
 protected:
  void StartGrpc(PublicServerOptions options = {}) {
    options.grpc = GrpcOptions{};
    Start(std::move(options));
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    channel_ = grpc::CreateCustomChannel(fmt::format("127.0.0.1:{}", server_->bound_grpc_port()),
                                         grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::Generation::NewStub(channel_);
  }

  // A context whose call fails rather than hangs.
  static std::unique_ptr<grpc::ClientContext> Context(const std::string& key = "") {
    auto context = std::make_unique<grpc::ClientContext>();
    context->set_deadline(absl::ToChronoTime(MonotonicNow() + absl::Seconds(20)));
    if (!key.empty()) context->AddMetadata("authorization", "Bearer " + key);
    return context;
  }

  grpc::Status Refusal(const v1::GenerateRequest& request) {
    auto context = Context();
    auto reader = stub_->Generate(context.get(), request);
    v1::GenerateReply reply;
    EXPECT_FALSE(reader->Read(&reply));
    return reader->Finish();
  }

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Generation::Stub> stub_;
};

inline v1::GenerateRequest TextRequest(const std::string& text) {
  v1::GenerateRequest request;
  request.mutable_prompt()->set_text(text);
  return request;
}

}  // namespace polyreme::api
