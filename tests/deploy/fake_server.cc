#include "tests/deploy/fake_server.h"

#include <fmt/format.h>

#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "deploy/bench/http_client.h"
#include "parallel/base/json.h"

namespace polyreme::bench {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr size_t kMaxBodiesKept = 64;

// The value of a header in a head, "" if absent; names as our client spells them.
std::string HeaderOf(const std::string& head, std::string_view name) {
  const size_t at = head.find(fmt::format("\r\n{}: ", name));
  if (at == std::string::npos) return "";
  const size_t begin = at + name.size() + 4;
  return head.substr(begin, head.find("\r\n", begin) - begin);
}

std::string HttpChunk(std::string_view bytes) {
  return fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes);
}

}  // namespace

class FakeServer::Impl {
 public:
  explicit Impl(FakeServerOptions options)
      : options_(std::move(options)),
        acceptor_(context_, tcp::endpoint(asio::ip::address_v4::loopback(),
                                          static_cast<uint16_t>(options_.port))) {
    acceptor_.listen(8192);
    port_ = acceptor_.local_endpoint().port();
    Accept();
    thread_ = std::thread([this] { context_.run(); });
  }

  ~Impl() {
    context_.stop();
    thread_.join();
  }

  class Connection;
  void Accept();

  const FakeServerOptions options_;
  asio::io_context context_{1};
  tcp::acceptor acceptor_;
  int32_t port_ = 0;
  std::thread thread_;
  std::atomic<int64_t> num_requests_{0};
  std::atomic<int64_t> num_connections_{0};
  mutable std::mutex mutex_;
  std::map<std::string, Served> served_;  // guarded by mutex_
  std::vector<std::string> bodies_;       // guarded by mutex_
};

class FakeServer::Impl::Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Impl& server, tcp::socket socket)
      : server_(server), socket_(std::move(socket)), timer_(server.context_) {}

  void Read() {
    socket_.async_read_some(asio::buffer(buffer_),
                            [self = shared_from_this()](const ErrorCode& error, size_t count) {
                              if (error) return self->Close();
                              self->input_.append(self->buffer_.data(), count);
                              self->TryAnswer();
                              self->Read();
                            });
  }

 private:
  void Close() {
    ErrorCode ignored;
    timer_.cancel();
    socket_.close(ignored);
  }

  void TryAnswer() {
    const size_t head_end = input_.find("\r\n\r\n");
    if (head_end == std::string::npos || is_answering_) return;
    const std::string head = input_.substr(0, head_end + 2);
    const std::string length = HeaderOf(head, "Content-Length");
    const size_t body_bytes = length.empty() ? 0 : std::stoul(length);
    if (input_.size() < head_end + 4 + body_bytes) return;
    const std::string body = input_.substr(head_end + 4, body_bytes);
    input_.erase(0, head_end + 4 + body_bytes);
    const std::string key = server_.options_.api_key;
    if (!key.empty() && HeaderOf(head, "Authorization") != "Bearer " + key) {
      return Whole(401, R"({"error":{"message":"a key is needed"}})");
    }
    if (head.starts_with("GET /v1/models ")) {
      return Whole(200,
                   fmt::format(R"({{"object":"list","data":[{{"id":"{}","max_model_len":{}}}]}})",
                               server_.options_.model, server_.options_.max_model_len));
    }
    if (head.starts_with("GET /metrics ")) return Whole(200, server_.options_.metrics);
    if (!head.starts_with("POST /v1/"))
      return Whole(404, R"({"error":{"message":"no such path"}})");
    Generate(head, body);
  }

  void Generate(const std::string& head, const std::string& body) {
    const absl::StatusOr<Json> json = Json::Parse(body);
    if (!json.ok()) return Whole(400, R"({"error":{"message":"no JSON"}})");
    const Json* const prompt = json->Find("prompt");
    const auto max_tokens = static_cast<int32_t>(json->Find("max_tokens")->as_int());
    prompt_tokens_ = prompt != nullptr && prompt->is_array()
                         ? static_cast<int32_t>(prompt->as_array().size())
                         : 7;
    if (prompt_tokens_ + max_tokens > server_.options_.max_model_len) {
      return Whole(400,
                   fmt::format(R"({{"error":{{"message":"prompt of {} tokens and max_tokens {} )"
                               R"(are more than the context of {}"}}}})",
                               prompt_tokens_, max_tokens, server_.options_.max_model_len));
    }
    is_answering_ = true;
    is_chat_ = json->Find("messages") != nullptr;
    wants_usage_ = server_.options_.sends_usage && json->Find("stream_options") != nullptr;
    request_ = server_.num_requests_++;
    num_chunks_ = server_.options_.num_chunks > 0 ? server_.options_.num_chunks : max_tokens;
    chunk_ = 0;
    served_ = {.arrived_ns = NowNanos(), .chunks_ns = {}};
    id_ = HeaderOf(head, "X-Request-Id");
    if (server_.options_.records) {
      const std::lock_guard lock(server_.mutex_);
      if (server_.bodies_.size() < kMaxBodiesKept) server_.bodies_.push_back(body);
    }
    Write(
        fmt::format("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                    "Transfer-Encoding: chunked\r\n{}\r\n",
                    server_.options_.keeps_alive ? "" : "Connection: close\r\n"));
    Schedule();
  }

  void Schedule() {
    if (chunk_ == num_chunks_) return Finish();
    const int64_t at = served_.arrived_ns + server_.options_.when(request_, chunk_);
    timer_.expires_at(std::chrono::steady_clock::time_point(std::chrono::nanoseconds(at)));
    timer_.async_wait([self = shared_from_this()](const ErrorCode& error) {
      if (!error) self->SendChunk();
    });
  }

  void SendChunk() {
    if (server_.options_.records) served_.chunks_ns.push_back(NowNanos());
    static constexpr std::string_view kText =
        "data: {\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"created\":1700000000,\"model\":"
        "\"fake\",\"choices\":[{\"index\":0,\"text\":\" word\",\"logprobs\":null,"
        "\"finish_reason\":null}],\"usage\":null}\n\n";
    static constexpr std::string_view kDelta =
        "data: {\"id\":\"chat-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
        "\"model\":\"fake\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},"
        "\"finish_reason\":null}]}\n\n";
    Write(HttpChunk(is_chat_ ? kDelta : kText));
    if (request_ == server_.options_.cuts) {
      cuts_when_written_ = true;
      return;
    }
    ++chunk_;
    Schedule();
  }

  void Finish() {
    std::string last =
        HttpChunk(R"(data: {"choices":[{"index":0,"text":"","delta":{},"finish_reason":"length"}]})"
                  "\n\n");
    if (wants_usage_) {
      last += HttpChunk(fmt::format(
          "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":{},\"completion_tokens\":{},"
          "\"total_tokens\":{}}}}}\n\n",
          prompt_tokens_, num_chunks_, prompt_tokens_ + num_chunks_));
    }
    last += HttpChunk("data: [DONE]\n\n") + "0\r\n\r\n";
    Write(std::move(last));
    if (server_.options_.records) {
      const std::lock_guard lock(server_.mutex_);
      server_.served_[id_] = std::move(served_);
    }
    is_answering_ = false;
    if (!server_.options_.keeps_alive) cuts_when_written_ = true;
    TryAnswer();
  }

  void Whole(int code, std::string_view body) {
    Write(
        fmt::format("HTTP/1.1 {} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n"
                    "\r\n{}",
                    code, body.size(), body));
  }

  void Write(std::string bytes) {
    output_ += bytes;
    if (!is_writing_) WriteMore();
  }

  void WriteMore() {
    is_writing_ = true;
    writing_ = std::exchange(output_, {});
    asio::async_write(socket_, asio::buffer(writing_),
                      [self = shared_from_this()](const ErrorCode& error, size_t) {
                        self->is_writing_ = false;
                        if (error) return self->Close();
                        if (!self->output_.empty()) return self->WriteMore();
                        if (self->cuts_when_written_) self->Close();
                      });
  }

  Impl& server_;
  tcp::socket socket_;
  asio::steady_timer timer_;
  std::array<char, 4096> buffer_;
  std::string input_;
  std::string output_;
  std::string writing_;
  bool is_writing_ = false;
  bool cuts_when_written_ = false;
  bool is_answering_ = false;
  bool is_chat_ = false;
  bool wants_usage_ = false;
  int64_t request_ = 0;
  int32_t prompt_tokens_ = 0;
  int32_t num_chunks_ = 0;
  int32_t chunk_ = 0;
  std::string id_;
  Served served_;
};

void FakeServer::Impl::Accept() {
  acceptor_.async_accept([this](const ErrorCode& error, tcp::socket socket) {
    if (error) return;
    ++num_connections_;
    socket.set_option(tcp::no_delay(true));
    std::make_shared<Connection>(*this, std::move(socket))->Read();
    Accept();
  });
}

FakeServer::FakeServer(FakeServerOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}

FakeServer::~FakeServer() = default;

int32_t FakeServer::port() const {
  return impl_->port_;
}
std::string FakeServer::url() const {
  return fmt::format("http://127.0.0.1:{}", impl_->port_);
}
std::map<std::string, FakeServer::Served> FakeServer::served() const {
  const std::lock_guard lock(impl_->mutex_);
  return impl_->served_;
}
int64_t FakeServer::num_requests() const {
  return impl_->num_requests_;
}
int64_t FakeServer::num_connections() const {
  return impl_->num_connections_;
}
std::vector<std::string> FakeServer::bodies() const {
  const std::lock_guard lock(impl_->mutex_);
  return impl_->bodies_;
}

}  // namespace polyreme::bench
