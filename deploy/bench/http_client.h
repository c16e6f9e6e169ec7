// HTTP/1.1 from one thread over many kept connections, for load: bounded, with a deadline on every
// wait, and cheap enough that what is measured is the server.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "absl/time/time.h"
#include "deploy/bench/http_response.h"
#include "deploy/bench/http_url.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

// Nanoseconds of the steady clock: what all times of requests are told in.
int64_t NowNanos();

// Told of one exchange, on the client's thread. Borrowed until OnEnd, which is the last call.
class ExchangeHandler {
 public:
  virtual ~ExchangeHandler() = default;
  // Bytes of the answer's body, in order, and when they were read.
  virtual void OnBody(const ResponseParser& head, std::string_view bytes, int64_t now) = 0;
  // ok: the whole answer came, code() of `head` may be any. Else Unavailable (no connection, or it
  // broke), DataLoss (no HTTP), DeadlineExceeded or Cancelled; `head` is as far as it came.
  virtual void OnEnd(const ResponseParser& head, const absl::Status& status, int64_t now) = 0;
};

struct HttpClientBounds {
  int32_t max_connections = 8192;  // more exchanges wait for one
  int32_t max_connecting = 256;    // at once: a server's queue of those to accept is bounded too
  absl::Duration connect_deadline = absl::Seconds(10);
  absl::Duration silence_deadline = absl::Minutes(10);  // without a byte of the answer
};

// Addresses of a host, or a sentence that it cannot be found. Blocking.
absl::StatusOr<std::vector<boost::asio::ip::tcp::endpoint>> Resolve(const HttpUrl& url);

class HttpClient {
 public:
  using Endpoints = std::vector<boost::asio::ip::tcp::endpoint>;
  HttpClient(boost::asio::io_context& context, Endpoints endpoints, const HttpClientBounds& bounds);
  ~HttpClient();

  // Sends a whole request on a kept connection, or a new one. One that the server closed while it
  // lay idle is replaced without a word, once. Never calls the handler before it returns.
  void Start(std::string request, ExchangeHandler& handler);
  // Ends what has waited too long; to be called every now and then.
  void CheckDeadlines(int64_t now);
  // Ends all exchanges with Cancelled and closes all connections.
  void Cancel();

  int64_t connections_made() const { return connections_made_; }

 private:
  class Connection;
  struct Waiting {
    std::string request;
    ExchangeHandler* handler;
  };
  void Dispatch(std::string request, ExchangeHandler& handler, bool may_reuse);
  void OnConnected();
  void OnFree(const std::shared_ptr<Connection>& connection);
  void OnClosed(const std::shared_ptr<Connection>& connection);
  void StartNext();

  boost::asio::io_context& context_;
  const Endpoints endpoints_;
  const HttpClientBounds bounds_;
  std::unordered_set<std::shared_ptr<Connection>> connections_;
  std::vector<std::shared_ptr<Connection>> idle_;
  std::deque<Waiting> waiting_;
  int32_t num_connecting_ = 0;
  int64_t connections_made_ = 0;
};

// One whole exchange, blocking, for what is asked beside the load.
struct HttpReply {
  int32_t code = 0;
  std::string body;
};
// Errors as OnEnd has them, with the server's address; ResourceExhausted for more than bytes_max.
absl::StatusOr<HttpReply> Fetch(const HttpUrl& url, const std::string& request,
                                absl::Duration patience, size_t bytes_max = size_t{16} << 20);

// A request's bytes. `headers`: whole lines, each with its CRLF.
std::string GetRequest(const HttpUrl& url, std::string_view path, std::string_view headers);
std::string PostRequest(const HttpUrl& url, std::string_view path, std::string_view headers,
                        std::string_view body);

}  // namespace polyreme::bench
