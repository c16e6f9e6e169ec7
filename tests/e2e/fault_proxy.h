// A network that misbehaves, in user space: a TCP proxy between two programs, or two ranks, which
// delays, cuts small, swallows or resets what passes.
//
// It counts what it did, so that a test can tell that a fault has happened at all.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "parallel/comm/unique_fd.h"

namespace polyreme::e2e {

class FaultProxy {
 public:
  enum class Passage {
    kBoth,    // forwarded both ways
    kOneWay,  // what the server says is swallowed
    kNone,    // both ways swallowed, while both connections stay: a silent black hole
  };
  struct Link {
    Passage passage = Passage::kBoth;
    absl::Duration delay = absl::ZeroDuration();  // of each byte, each way
    size_t segment_bytes = 0;  // at most so many bytes a segment; 0: as they come
  };

  struct Options {
    std::string listen = "127.0.0.1";
    int32_t listen_port = 0;  // 0: any free one
    Link link = {};           // from the beginning
    // Sees what the server says before it is passed on, and may change it to as much else. On the
    // proxy's thread.
    std::function<void(std::string& bytes)> on_answer = nullptr;
  };

  // Listens, and connects each connection that comes in to host:port.
  FaultProxy(const std::string& host, int32_t port) : FaultProxy(host, port, Options()) {}
  FaultProxy(const std::string& host, int32_t port, Options options);
  ~FaultProxy();
  FaultProxy(const FaultProxy&) = delete;
  FaultProxy& operator=(const FaultProxy&) = delete;

  int32_t port() const { return port_; }
  std::string address() const;  // "127.0.0.1:4711"

  // For all connections, those that are open too; returns once it holds. Any thread, as the rest.
  void Set(const Link& link);
  // Resets both ends of all connections that are open.
  void Reset() { resets_ = true; }
  // Ends the server's end only: the client's stays open and hears nothing any more.
  void HalfOpen() { half_opens_ = true; }

  int num_connections() const { return num_connections_; }  // that have come in so far
  int num_ended() const { return num_ended_; }              // by Reset or HalfOpen
  int64_t bytes_passed() const { return bytes_passed_; }
  int64_t bytes_swallowed() const { return bytes_swallowed_; }
  int64_t segments() const { return segments_; }

 private:
  struct Connection;
  class Direction;

  void Run();
  void Accept();
  void ObeyOrders(const Link& link);
  int WaitMilliseconds() const;

  const std::string host_;
  const int32_t server_port_;
  const Options options_;
  int32_t port_ = 0;
  comm::UniqueFd listener_;
  std::mutex mutex_;
  Link link_;            // guarded by mutex_
  int64_t num_set_ = 0;  // guarded by mutex_
  std::atomic<int64_t> num_obeyed_{0};
  std::atomic<bool> resets_{false};
  std::atomic<bool> half_opens_{false};
  std::atomic<bool> ending_{false};
  std::atomic<int> num_connections_{0};
  std::atomic<int> num_ended_{0};
  std::atomic<int64_t> bytes_passed_{0};
  std::atomic<int64_t> bytes_swallowed_{0};
  std::atomic<int64_t> segments_{0};
  std::vector<std::unique_ptr<Connection>> connections_;  // the thread's
  std::thread thread_;
};

}  // namespace polyreme::e2e
