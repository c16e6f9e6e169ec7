// What the connections of one HTTP server share. Only http_server.cc includes this.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

#include "coordinator/api/http_server.h"
#include "parallel/base/limits.h"

namespace polyreme::api {

struct HttpShared {
  HttpServerOptions options;
  HttpServer::Hooks hooks;
  std::atomic<bool> stopping{false};
  std::atomic<bool> draining{false};
  std::atomic<int64_t> body_bytes{0};

  std::mutex mutex;
  std::condition_variable changed;
  int32_t num_connections = 0;  // guarded by mutex
};

// The share of HttpShared::body_bytes that one request's body holds.
class BodyLease {
 public:
  explicit BodyLease(std::shared_ptr<HttpShared> shared) : shared_(std::move(shared)) {}
  ~BodyLease() { shared_->body_bytes -= bytes_; }
  BodyLease(const BodyLease&) = delete;
  BodyLease& operator=(const BodyLease&) = delete;

  // False when all bodies together would be too many.
  bool GrowTo(int64_t bytes) {
    const int64_t more = bytes - bytes_;
    bytes_ = bytes;
    return (shared_->body_bytes += more) <= limits::kMaxHttpBodiesBytes;
  }

 private:
  const std::shared_ptr<HttpShared> shared_;
  int64_t bytes_ = 0;
};

}  // namespace polyreme::api
