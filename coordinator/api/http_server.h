// HTTP/1.1 over sockets: connections, deadlines, back-pressure. What a request means is the hooks'
// business.
//
// Each connection lives on one of the I/O threads. Requests of a connection are answered in order,
// one at a time; bytes that follow a request are kept (up to a bound) until it is answered. The end
// of the client's bytes counts as its leaving.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "coordinator/api/http_message.h"
#include "parallel/base/limits.h"
#include "parallel/base/status.h"

namespace polyreme::api {

// The same work, again and again, on a connection's thread.
class HttpNotice {
 public:
  virtual ~HttpNotice() = default;
  // Several before the work has begun are one. Takes no memory. Any thread.
  virtual void Give() noexcept = 0;
};

// The answer to one request: one Send, or StartStream, any number of Writes, and Finish. All from
// any thread; calls behind the answer's end or the client's leaving do nothing. Dropping the last
// reference without an answer sends 500. A part of the answer that no memory is left for ends the
// connection, at once if anything was sent already, otherwise with a 503.
class HttpResponder {
 public:
  virtual ~HttpResponder() = default;
  virtual void Send(HttpResponse response) = 0;
  // `head` has no body: what Write brings follows.
  virtual void StartStream(HttpResponse head) = 0;
  virtual void Write(std::string bytes) = 0;
  virtual void Finish() = 0;
  // What will be written next ends the stream and passes, as a deadline does: who asks again under
  // its Idempotency-Key is not to have this answer, from now on.
  virtual void DoNotKeep() {}
  // Bytes written and not yet taken by the socket. Beyond limits::kMaxHttpPendingBytes the
  // connection is cut: a writer stops well below that and goes on when told that there is room.
  virtual int64_t pending_bytes() const = 0;
  // `on_room` is called on the connection's thread each time all pending bytes have been taken.
  virtual void SetOnRoom(std::function<void()> on_room) = 0;
  // Called once on the connection's thread if the client leaves before the answer's end; at once if
  // it has left.
  virtual void SetOnClosed(std::function<void()> on_closed) = 0;
  // Runs `work` on the connection's thread; drops it once the server has stopped. Work that runs
  // out of memory ends the connection.
  virtual void Post(std::function<void()> work) = 0;
  // As Post, for what may not fail when it is posted.
  virtual std::shared_ptr<HttpNotice> MakeNotice(std::function<void()> work) = 0;
  // No memory is left for the rest of the answer. Takes none.
  virtual void Cut() noexcept = 0;
};

struct HttpServerOptions {
  std::string host = "127.0.0.1";  // an address or a name
  int32_t port = 0;                // 0: any free one
  int32_t num_threads = 1;
  int32_t max_connections = limits::kMaxHttpConnections;         // one more is answered 503
  absl::Duration header_deadline = limits::kHttpHeaderDeadline;  // from a request's first byte
  absl::Duration body_deadline = limits::kHttpBodyDeadline;      // from the end of its head
  absl::Duration idle_deadline = limits::kHttpIdleDeadline;      // between requests
  absl::Duration write_deadline = limits::kHttpWriteDeadline;    // for each 256 KiB
};

class HttpServer {
 public:
  struct Hooks {
    // Sees the head before the body is read. An answer refuses the request; may set id and route of
    // `head`.
    std::function<std::optional<HttpResponse>(HttpRequest& head)> admit;
    // Takes the whole request. Must not block: it runs on the connection's thread.
    std::function<void(HttpRequest request, std::shared_ptr<HttpResponder> responder)> handle;
    // Of each answer, when it starts. `route` is what admit set, "" for requests that never reached
    // it.
    std::function<void(std::string_view route, int32_t code)> count;
  };

  // Listens and serves. Unavailable if the address is in use, InvalidArgument if it is no address
  // of this host.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpServerOptions& options,
                                                           Hooks hooks);
  ~HttpServer();  // as Stop without patience

  int32_t bound_port() const;
  // For how long the I/O thread that is worst off has not come round: it should within limits'
  // kIoTurnPatience. For one thread, before Stop.
  absl::Duration Stillness() const;
  // From now on each answer is the last one of its connection, and says so. Any thread.
  void Drain();
  // Accepts no more, closes idle connections, lets answers end until `deadline`, then cuts what is
  // left. Idempotent.
  void Stop(absl::Time deadline);

 private:
  class Impl;
  explicit HttpServer(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace polyreme::api
