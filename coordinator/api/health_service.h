// grpc.health.v1.Health, from the engine's health at the time of the question. Only
// generate_service.cc and its own file include this.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "coordinator/api/backend.h"
#include "parallel/base/bounded_queue.h"
#include "proto/health.grpc.pb.h"

namespace polyreme::api {

class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  using Request = grpc::health::v1::HealthCheckRequest;
  using Response = grpc::health::v1::HealthCheckResponse;

  // backend is borrowed.
  explicit HealthService(const GenerationBackend& backend);
  ~HealthService() override;

  // Everybody who watches hears NOT_SERVING and is sent away: a server that stops does not wait for
  // them.
  void Stop();

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context, const Request* request,
                                  Response* response) override;
  grpc::ServerWriteReactor<Response>* Watch(grpc::CallbackServerContext* context,
                                            const Request* request) override;

 private:
  class Watcher;

  Response::ServingStatus StatusOf(const std::string& service) const;
  std::vector<std::shared_ptr<Watcher>> Watchers();
  void Remove(const std::shared_ptr<Watcher>& watcher);

  const GenerationBackend& backend_;
  BoundedQueue<int> ticks_{1};  // only its Close is used: it ends the wait between two looks
  std::mutex mutex_;
  std::unordered_set<std::shared_ptr<Watcher>>
      watchers_;              // guarded by mutex_; each until its OnDone
  bool has_stopped_ = false;  // guarded by mutex_
  std::jthread thread_;
};

}  // namespace polyreme::api
