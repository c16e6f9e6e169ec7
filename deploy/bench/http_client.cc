#include "deploy/bench/http_client.h"

#include <algorithm>
#include <array>
#include <boost/asio/connect.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <utility>

namespace polyreme::bench {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr size_t kReadBytes = 4 << 10;

}  // namespace

int64_t NowNanos() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

absl::StatusOr<std::vector<tcp::endpoint>> Resolve(const HttpUrl& url) {
  asio::io_context context;
  tcp::resolver resolver(context);
  ErrorCode error;
  const auto results = resolver.resolve(url.host, url.port, error);
  if (error) return Unavailable("{}: {}", url.authority(), error.message());
  std::vector<tcp::endpoint> endpoints;
  for (const auto& result : results) endpoints.push_back(result.endpoint());
  return endpoints;
}

// One connection and the exchange on it, if there is one. A read is outstanding as long as it is
// open, so that a server that closes an idle connection is noticed.
class HttpClient::Connection : public std::enable_shared_from_this<Connection> {
 public:
  explicit Connection(HttpClient& client) : client_(&client), socket_(client.context_) {}

  bool is_busy() const { return handler_ != nullptr; }

  void Connect(std::string request, ExchangeHandler& handler) {
    Take(std::move(request), handler);
    is_fresh_ = true;
    deadline_ = begun_ + absl::ToInt64Nanoseconds(client_->bounds_.connect_deadline);
    asio::async_connect(socket_, client_->endpoints_,
                        [self = shared_from_this()](const ErrorCode& error, const tcp::endpoint&) {
                          self->OnConnected(error);
                        });
  }

  void Send(std::string request, ExchangeHandler& handler) {
    Take(std::move(request), handler);
    is_fresh_ = false;
    Write();
  }

  void CheckDeadline(int64_t now) {
    if (!is_busy() || now < deadline_) return;
    End(DeadlineExceeded("{} for {:.0f} s",
                         connected_ ? "the server said nothing" : "no connection to the server",
                         static_cast<double>(now - begun_) / 1e9));
  }

  // Ends the exchange and the connection with it.
  void End(const absl::Status& status) {
    Close();
    if (ExchangeHandler* const handler = std::exchange(handler_, nullptr); handler != nullptr) {
      handler->OnEnd(parser_, status, NowNanos());
    }
  }

  void Close() {
    if (client_ == nullptr) return;
    ErrorCode ignored;
    socket_.close(ignored);
    HttpClient* const client = std::exchange(client_, nullptr);
    if (!connected_) client->OnConnected();
    client->OnClosed(shared_from_this());
  }

 private:
  void Take(std::string request, ExchangeHandler& handler) {
    request_ = std::move(request);
    handler_ = &handler;
    parser_ = ResponseParser();
    has_answer_ = false;
    begun_ = NowNanos();
    Extend(begun_);
  }

  void Extend(int64_t now) {
    deadline_ = now + absl::ToInt64Nanoseconds(client_->bounds_.silence_deadline);
  }

  void OnConnected(const ErrorCode& error) {
    if (client_ == nullptr) return;
    if (error) return End(Unavailable("no connection: {}", error.message()));
    connected_ = true;
    client_->OnConnected();
    ErrorCode ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
    Extend(NowNanos());
    Write();
    Read();
  }

  void Write() {
    asio::async_write(socket_, asio::buffer(request_),
                      [self = shared_from_this()](const ErrorCode&, size_t) {
                        // A broken connection is seen by the read, which may still hold an answer.
                      });
  }

  void Read() {
    socket_.async_read_some(asio::buffer(buffer_),
                            [self = shared_from_this()](const ErrorCode& error, size_t count) {
                              self->OnRead(error, count);
                            });
  }

  void OnRead(const ErrorCode& error, size_t count) {
    if (client_ == nullptr) return;
    if (!is_busy()) return Close();  // it ended while idle, or says what nobody asked for
    const int64_t now = NowNanos();
    if (error) return OnBroken(error);
    has_answer_ = true;
    Extend(now);
    const size_t taken = parser_.Feed({buffer_.data(), count}, [this, now](std::string_view bytes) {
      if (handler_ != nullptr) handler_->OnBody(parser_, bytes, now);
    });
    if (parser_.state() == ResponseParser::State::kFailed) return End(parser_.failure());
    if (parser_.state() == ResponseParser::State::kDone) return OnDone(taken == count);
    Read();
  }

  void OnBroken(const ErrorCode& error) {
    HttpClient* const client = client_;
    if (!has_answer_ && !is_fresh_) {
      // The server closed it while it was idle, and our request crossed that.
      ExchangeHandler* const handler = std::exchange(handler_, nullptr);
      Close();
      return client->Dispatch(std::move(request_), *handler, /*may_reuse=*/false);
    }
    if (error != asio::error::eof) {
      return End(Unavailable("the connection broke: {}", error.message()));
    }
    parser_.FeedEnd();
    End(parser_.failure());  // ok where the end is the body's end
  }

  void OnDone(bool is_clean) {
    const auto self = shared_from_this();
    ExchangeHandler* const handler = std::exchange(handler_, nullptr);
    const ResponseParser head = std::move(parser_);
    // First free, then told: the handler may start the next exchange, and on this connection.
    if (is_clean && head.keeps_alive()) {
      Read();
      client_->OnFree(self);
    } else {
      Close();
    }
    handler->OnEnd(head, absl::OkStatus(), NowNanos());
  }

  HttpClient* client_;  // nullptr: closed
  tcp::socket socket_;
  ExchangeHandler* handler_ = nullptr;
  std::string request_;
  ResponseParser parser_;
  bool connected_ = false;
  bool is_fresh_ = true;     // nothing was answered on it before this exchange
  bool has_answer_ = false;  // a byte of it
  int64_t begun_ = 0;
  int64_t deadline_ = 0;
  std::array<char, kReadBytes> buffer_;
};

HttpClient::HttpClient(asio::io_context& context, Endpoints endpoints,
                       const HttpClientBounds& bounds)
    : context_(context), endpoints_(std::move(endpoints)), bounds_(bounds) {}

HttpClient::~HttpClient() {
  Cancel();
}

void HttpClient::Start(std::string request, ExchangeHandler& handler) {
  Dispatch(std::move(request), handler, /*may_reuse=*/true);
}

void HttpClient::Dispatch(std::string request, ExchangeHandler& handler, bool may_reuse) {
  if (may_reuse && !idle_.empty()) {
    const std::shared_ptr<Connection> connection = std::move(idle_.back());
    idle_.pop_back();
    return connection->Send(std::move(request), handler);
  }
  if (static_cast<int64_t>(connections_.size()) >= bounds_.max_connections ||
      num_connecting_ >= bounds_.max_connecting) {
    waiting_.push_back({std::move(request), &handler});
    return;
  }
  ++connections_made_;
  ++num_connecting_;
  const auto connection = std::make_shared<Connection>(*this);
  connections_.insert(connection);
  connection->Connect(std::move(request), handler);
}

void HttpClient::OnConnected() {
  --num_connecting_;
  StartNext();
}

void HttpClient::OnFree(const std::shared_ptr<Connection>& connection) {
  idle_.push_back(connection);
  StartNext();
}

void HttpClient::OnClosed(const std::shared_ptr<Connection>& connection) {
  std::erase(idle_, connection);
  connections_.erase(connection);
  StartNext();
}

void HttpClient::StartNext() {
  if (waiting_.empty()) return;
  Waiting next = std::move(waiting_.front());
  waiting_.pop_front();
  Dispatch(std::move(next.request), *next.handler, /*may_reuse=*/true);
}

void HttpClient::CheckDeadlines(int64_t now) {
  const std::vector<std::shared_ptr<Connection>> all(connections_.begin(), connections_.end());
  for (const auto& connection : all) connection->CheckDeadline(now);
}

void HttpClient::Cancel() {
  const ResponseParser nothing;
  for (const Waiting& waiting : std::exchange(waiting_, {})) {
    waiting.handler->OnEnd(nothing, Cancelled("not sent"), NowNanos());
  }
  const std::vector<std::shared_ptr<Connection>> all(connections_.begin(), connections_.end());
  for (const auto& connection : all) connection->End(Cancelled("cancelled"));
}

absl::StatusOr<HttpReply> Fetch(const HttpUrl& url, const std::string& request,
                                absl::Duration patience, size_t bytes_max) {
  class Collector final : public ExchangeHandler {
   public:
    void OnBody(const ResponseParser&, std::string_view bytes, int64_t) override {
      if (reply.body.size() + bytes.size() > bytes_max) {
        too_long = true;
      } else {
        reply.body += bytes;
      }
    }
    void OnEnd(const ResponseParser& head, const absl::Status& end, int64_t) override {
      reply.code = head.code();
      status = end;
      done = true;
    }
    HttpReply reply;
    absl::Status status;
    size_t bytes_max = 0;
    bool too_long = false;
    bool done = false;
  };
  Collector collector;
  collector.bytes_max = bytes_max;
  ASSIGN_OR_RETURN(auto endpoints, Resolve(url));
  asio::io_context context(1);
  HttpClientBounds bounds;
  bounds.connect_deadline = bounds.silence_deadline = patience;
  HttpClient client(context, std::move(endpoints), bounds);
  client.Start(request, collector);
  const int64_t deadline = NowNanos() + absl::ToInt64Nanoseconds(patience);
  while (!collector.done && !collector.too_long) {
    context.run_one_for(std::chrono::milliseconds(50));
    if (NowNanos() >= deadline && !collector.done) {
      return DeadlineExceeded("{}: no answer within {}", url.authority(),
                              absl::FormatDuration(patience));
    }
  }
  if (collector.too_long) {
    return ResourceExhausted("{}: an answer of more than {} bytes", url.authority(), bytes_max);
  }
  RETURN_IF_ERROR(Annotate(collector.status, url.authority()));
  return std::move(collector.reply);
}

std::string GetRequest(const HttpUrl& url, std::string_view path, std::string_view headers) {
  return fmt::format("GET {}{} HTTP/1.1\r\nHost: {}\r\n{}\r\n", url.prefix, path, url.authority(),
                     headers);
}

std::string PostRequest(const HttpUrl& url, std::string_view path, std::string_view headers,
                        std::string_view body) {
  return fmt::format(
      "POST {}{} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n"
      "{}\r\n{}",
      url.prefix, path, url.authority(), body.size(), headers, body);
}

}  // namespace polyreme::bench
