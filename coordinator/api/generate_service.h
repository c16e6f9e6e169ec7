// The public gRPC service over the same engine, validator and keys as HTTP.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "coordinator/api/api_keys.h"
#include "coordinator/api/backend.h"
#include "parallel/base/status.h"

namespace polyreme::api {

// A listener of its own with polyreme.v1.Generation, grpc.health.v1.Health (from the engine, live)
// and server reflection. Calls of Generation prove a key in their `authorization` metadata, as
// "Bearer <key>"; health and reflection need none.
class GrpcServer {
 public:
  // context and keys are borrowed and outlive the server. port 0: any free one.
  // Unavailable if the port is in use or the address is not ours.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const std::string& host, int32_t port,
                                                           const ApiContext& context,
                                                           const ApiKeys& keys);
  ~GrpcServer();  // as Stop without patience

  int32_t bound_port() const;
  // Takes no more calls, lets those that run end until `deadline`, then cancels them. Idempotent.
  void Stop(absl::Time deadline);

 private:
  class Impl;
  explicit GrpcServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace polyreme::api
