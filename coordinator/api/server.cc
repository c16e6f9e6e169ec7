#include "coordinator/api/server.h"

#include <utility>

#include "coordinator/api/api_keys.h"
#include "coordinator/api/generate_service.h"
#include "coordinator/api/openai_routes.h"
#include "coordinator/api/router.h"
#include "coordinator/api/status_routes.h"
#include "coordinator/api/task_pool.h"

namespace polyreme::api {
namespace {

std::vector<Route> AllRoutes(const ApiContext& context) {
  std::vector<Route> routes = OpenAiRoutes(context);
  for (Route& route : StatusRoutes(context)) routes.push_back(std::move(route));
  return routes;
}

}  // namespace

// The faces stop before the pool, and the pool before everything that its tasks use.
class PublicServer::Impl {
 public:
  Impl(const PublicServerOptions& options, const PublicServerParts& parts)
      : model_(parts.model),
        keys_(options.api_keys),
        idempotency_(options.idempotency, parts.clock, parts.metrics),
        pool_(options.num_tokenizer_threads, options.max_waiting_to_tokenize),
        context_{.backend = parts.backend,
                 .tokenizer = parts.tokenizer,
                 .chat_template = parts.chat_template,
                 .model = model_,
                 .metrics = parts.metrics,
                 .clock = parts.clock,
                 .pool = pool_,
                 .idempotency = idempotency_},
        router_(AllRoutes(context_), keys_) {}

  ~Impl() {
    Stop(absl::InfinitePast());
    pool_.Stop();
  }

  absl::Status Start(const PublicServerOptions& options) {
    HttpServer::Hooks hooks;
    hooks.admit = [this](HttpRequest& head) { return router_.Admit(head); };
    hooks.handle = [this](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
      router_.Handle(std::move(request), std::move(responder));
    };
    hooks.count = [this](std::string_view route, int32_t code) {
      context_.metrics.HttpResponse(route.empty() ? "none" : std::string(route), code);
    };
    ASSIGN_OR_RETURN(http_, HttpServer::Start(options.http, std::move(hooks)));
    if (!options.grpc.has_value()) return absl::OkStatus();
    ASSIGN_OR_RETURN(grpc_,
                     GrpcServer::Start(options.grpc->host, options.grpc->port, context_, keys_));
    return absl::OkStatus();
  }

  void Drain() { http_->Drain(); }

  void Stop(absl::Time deadline) {
    if (grpc_ != nullptr) grpc_->Stop(deadline);
    if (http_ != nullptr) http_->Stop(deadline);
  }

  absl::Duration Stillness() const { return http_->Stillness(); }
  int32_t http_port() const { return http_->bound_port(); }
  int32_t grpc_port() const { return grpc_ == nullptr ? 0 : grpc_->bound_port(); }

 private:
  const ModelInfo model_;
  const ApiKeys keys_;
  IdempotencyStore idempotency_;  // outlives the pool, whose tasks use it
  TaskPool pool_;
  const ApiContext context_;
  const Router router_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<GrpcServer> grpc_;  // null if not asked for
};

absl::StatusOr<std::unique_ptr<PublicServer>> PublicServer::Start(
    const PublicServerOptions& options, const PublicServerParts& parts) {
  auto impl = std::make_unique<Impl>(options, parts);
  RETURN_IF_ERROR(impl->Start(options));
  return std::unique_ptr<PublicServer>(new PublicServer(std::move(impl)));
}

PublicServer::PublicServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PublicServer::~PublicServer() = default;
int32_t PublicServer::bound_port() const {
  return impl_->http_port();
}
int32_t PublicServer::bound_grpc_port() const {
  return impl_->grpc_port();
}
absl::Duration PublicServer::Stillness() const {
  return impl_->Stillness();
}
void PublicServer::Drain() {
  impl_->Drain();
}
void PublicServer::Stop(absl::Time deadline) {
  impl_->Stop(deadline);
}

}  // namespace polyreme::api
