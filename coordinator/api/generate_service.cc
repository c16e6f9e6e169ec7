#include "coordinator/api/generate_service.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "coordinator/api/grpc_calls.h"
#include "coordinator/api/health_service.h"
#include "coordinator/api/idempotency.h"
#include "coordinator/api/openai_request.h"
#include "coordinator/api/proto_request.h"
#include "parallel/base/limits.h"
#include "proto/api.grpc.pb.h"

namespace polyreme::api {
namespace {

constexpr int32_t kPumpThreads = 1;
// A call and a run under a key have one or two each.
constexpr int32_t kMaxKeptTasks = 4 * (limits::kMaxGrpcCalls + limits::kMaxIdempotencyKeys);
constexpr int32_t kMaxStreamsPerConnection = 1024;

class GenerationService final : public v1::Generation::CallbackService {
 public:
  GenerationService(GrpcWork& work, const ApiKeys& keys) : work_(work), keys_(keys) {}

  grpc::ServerWriteReactor<v1::GenerateReply>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override {
    const bool has_deadline = context->deadline() != std::chrono::system_clock::time_point::max();
    const auto call = std::make_shared<GenerateCall>(
        work_, *request,
        has_deadline ? absl::FromChrono(context->deadline()) : absl::InfiniteFuture());
    absl::Status refusal = CheckKey(*context);
    if (refusal.ok()) refusal = ReadIdempotencyKey(context, *call);
    call->Start(refusal);
    return call.get();
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeReply* reply) override {
    auto* call = new PoolCall();
    call->Run(
        work_.context.pool, [this, refusal = CheckKey(*context), request, reply]() -> absl::Status {
          RETURN_IF_ERROR(refusal);
          const ApiContext& api = work_.context;
          RETURN_IF_ERROR(CheckModelName(request->model(), api.model));
          ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, PromptTokens(request->prompt(), api));
          reply->mutable_tokens()->Add(tokens.begin(), tokens.end());
          reply->set_max_model_len(api.model.limits.max_model_len);
          return absl::OkStatus();
        });
    return call;
  }

  grpc::ServerUnaryReactor* Models(grpc::CallbackServerContext* context, const v1::ModelsRequest*,
                                   v1::ModelsReply* reply) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    const absl::Status refusal = CheckKey(*context);
    if (refusal.ok()) {
      AddModel(work_.context.model.limits.model_name, *reply);
      for (const std::string& name : work_.context.model.other_names) AddModel(name, *reply);
    }
    reactor->Finish(ToGrpc(refusal));
    return reactor;
  }

 private:
  // "" if there is none.
  static std::string_view Authorization(const grpc::CallbackServerContext& context) {
    const auto found = context.client_metadata().find("authorization");
    if (found == context.client_metadata().end()) return {};
    return {found->second.data(), found->second.size()};
  }

  static absl::Status ReadIdempotencyKey(grpc::CallbackServerContext* context, GenerateCall& call) {
    const auto [begin, end] = context->client_metadata().equal_range("idempotency-key");
    if (begin == end) return absl::OkStatus();
    if (std::next(begin) != end) {
      return InvalidArgument("Idempotency-Key: expected one such header, got several");
    }
    ASSIGN_OR_RETURN(const std::string key,
                     ParseIdempotencyKey({begin->second.data(), begin->second.size()}));
    call.UnderKey(context, IdOfKey(Authorization(*context), key));
    return absl::OkStatus();
  }

  absl::Status CheckKey(const grpc::CallbackServerContext& context) const {
    const std::string_view value = Authorization(context);
    if (keys_.Opens(value)) return absl::OkStatus();
    return Unauthenticated(
        "expected metadata 'authorization: Bearer <key>' with a key of this server");
  }

  void AddModel(const std::string& name, v1::ModelsReply& reply) const {
    v1::Model& model = *reply.add_models();
    model.set_name(name);
    model.set_max_model_len(work_.context.model.limits.max_model_len);
    model.set_vocabulary(work_.context.model.limits.vocabulary);
  }

  GrpcWork& work_;
  const ApiKeys& keys_;
};

}  // namespace

class GrpcServer::Impl {
 public:
  Impl(const ApiContext& context, const ApiKeys& keys)
      : pump_(kPumpThreads, limits::kMaxGrpcCalls),
        work_{.context = context,
              .pump = pump_,
              .kept = std::make_shared<TaskPool>(1, kMaxKeptTasks)},
        generation_(work_, keys),
        health_(context.backend) {}

  ~Impl() {
    Stop(absl::InfinitePast());
    pump_.Stop();
    work_.kept->Stop();
  }

  absl::Status Start(const std::string& host, int32_t port) {
    // Idempotent, and done by loading the library already; named here so that the linker keeps it.
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    const bool is_ipv6 = host.find(':') != std::string::npos;
    const std::string address =
        fmt::format("{}{}{}:{}", is_ipv6 ? "[" : "", host, is_ipv6 ? "]" : "", port);
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &bound_port_);
    // Otherwise two servers could share a port, and each would get a part of the calls.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
    builder.SetMaxReceiveMessageSize(static_cast<int>(limits::kMaxHttpBodyBytes));
    builder.RegisterService(&generation_);
    builder.RegisterService(&health_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || bound_port_ == 0) {
      return Unavailable("grpc-port: {} is in use by another program or no address of this host",
                         address);
    }
    return absl::OkStatus();
  }

  void Stop(absl::Time deadline) {
    if (server_ == nullptr) return;
    health_.Stop();
    server_->Shutdown(absl::ToChronoTime(std::max(deadline, MonotonicNow())));
    server_->Wait();
    server_ = nullptr;
  }

  int32_t bound_port() const { return bound_port_; }

 private:
  TaskPool pump_;
  GrpcWork work_;
  GenerationService generation_;
  HealthService health_;
  std::unique_ptr<grpc::Server> server_;
  int bound_port_ = 0;
};

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const std::string& host, int32_t port,
                                                              const ApiContext& context,
                                                              const ApiKeys& keys) {
  auto impl = std::make_unique<Impl>(context, keys);
  RETURN_IF_ERROR(impl->Start(host, port));
  return std::unique_ptr<GrpcServer>(new GrpcServer(std::move(impl)));
}

GrpcServer::GrpcServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GrpcServer::~GrpcServer() = default;
int32_t GrpcServer::bound_port() const {
  return impl_->bound_port();
}
void GrpcServer::Stop(absl::Time deadline) {
  impl_->Stop(deadline);
}

}  // namespace polyreme::api
