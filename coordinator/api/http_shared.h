// What the connections of one HTTP server share. Only http_server.cc includes this.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <utility>

#include "coordinator/api/http_server.h"
#include "parallel/base/limits.h"
#include "parallel/base/out_of_memory.h"

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

class Connection;

// One I/O thread. Outlives its connections, which share it; posts after End are dropped.
class Loop {
 public:
  Loop() : guard_(boost::asio::make_work_guard(context_)) {}

  void Post(std::function<void()> work) {
    const std::lock_guard lock(mutex_);
    if (!ended_) boost::asio::post(context_, std::move(work));
  }
  void Run() {
    EndIfOutOfMemory("an I/O thread", [this] {
      while (!WithinMemory([this] { context_.run(); }).ok()) {
        if (on_lost_handler_) on_lost_handler_();
      }
    });
  }
  // Called on the loop's thread after a handler was lost because memory for it ran out. Before Run.
  void SetOnLostHandler(std::function<void()> act) { on_lost_handler_ = std::move(act); }
  // Run returns once what is queued and outstanding is done.
  void End() {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    guard_.reset();
  }

  boost::asio::io_context& context() { return context_; }
  std::unordered_set<Connection*>& connections() { return connections_; }

 private:
  boost::asio::io_context context_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> guard_;
  std::unordered_set<Connection*> connections_;  // touched on the loop's thread only
  std::function<void()> on_lost_handler_;
  std::mutex mutex_;
  bool ended_ = false;  // guarded by mutex_
};

}  // namespace polyreme::api
