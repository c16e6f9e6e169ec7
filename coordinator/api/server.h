// The public faces of a coordinator in one object: HTTP, and gRPC if asked for.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/api/backend.h"
#include "coordinator/api/http_server.h"
#include "coordinator/api/idempotency.h"
#include "parallel/base/status.h"

namespace polyreme::api {

struct GrpcOptions {
  std::string host = "127.0.0.1";
  int32_t port = 0;  // 0: any free one
};

struct PublicServerOptions {
  HttpServerOptions http;
  std::optional<GrpcOptions> grpc;
  std::vector<std::string> api_keys;  // none: open, which only a loopback address should be
  int32_t num_tokenizer_threads = 2;
  int32_t max_waiting_to_tokenize = 256;  // one more is answered 429
  IdempotencyOptions idempotency;
};

// Borrowed by the server and outliving it, but for the model's description, which is copied.
struct PublicServerParts {
  GenerationBackend& backend;
  const text::Tokenizer& tokenizer;
  const text::ChatTemplate* chat_template = nullptr;  // nullptr: chats are refused
  ModelInfo model;
  engine::Metrics& metrics;
  const Clock& clock;
};

class PublicServer {
 public:
  // Serves when it returns. Unavailable if a port is in use, InvalidArgument for an address that is
  // not ours.
  static absl::StatusOr<std::unique_ptr<PublicServer>> Start(const PublicServerOptions& options,
                                                             const PublicServerParts& parts);
  ~PublicServer();  // as Stop without patience

  int32_t bound_port() const;
  int32_t bound_grpc_port() const;  // 0 without gRPC
  // As HttpServer has it.
  absl::Duration Stillness() const;
  // Still answers, but asks clients to leave: HTTP connections close behind their answer. Any
  // thread.
  void Drain();
  // Accepts no more, lets answers end until `deadline`, then cuts the rest. Idempotent; any thread.
  void Stop(absl::Time deadline);

 private:
  class Impl;
  explicit PublicServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace polyreme::api
