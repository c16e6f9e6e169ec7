// One Connection is a small state machine on one thread's io_context; nothing in it needs a lock.
//
//   kReading ──whole request──► kHandling ──answered──► kReading, or kLingering ──► kClosed
//      └───refused or malformed─────┘
//
// A read is outstanding in every state but while a pipelining client's bytes wait, so that a client
// that leaves is noticed at once. Lingering: our side is shut, and what still comes is dropped
// briefly, because closing a socket with unread bytes resets it and the answer may never be seen.
#include "coordinator/api/http_server.h"

#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "coordinator/api/api_error.h"
#include "coordinator/api/http_listener.h"
#include "coordinator/api/http_parser.h"
#include "coordinator/api/http_shared.h"
#include "parallel/base/clock.h"
#include "parallel/base/log.h"
#include "parallel/base/out_of_memory.h"

namespace polyreme::api {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr size_t kReadBytes = 16 << 10;
constexpr size_t kMaxPipelinedBytes = 64 << 10;
constexpr size_t kWritePartBytes = 256 << 10;
constexpr int64_t kMaxLingerBytes = int64_t{1} << 20;

}  // namespace

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<HttpShared> shared, std::shared_ptr<Loop> loop, tcp::socket socket)
      : shared_(std::move(shared)),
        loop_(std::move(loop)),
        socket_(std::move(socket)),
        read_timer_(loop_->context()),
        write_timer_(loop_->context()) {}

  void Start();
  // The server stops: at once if no request is there, else behind its answer.
  void StopWhenIdle();
  void Close();

  // From the responder of exchange number `exchange`; late calls do nothing.
  void Send(uint64_t exchange, HttpResponse response);
  void StartStream(uint64_t exchange, HttpResponse head);
  void Write(uint64_t exchange, std::string bytes);
  void Finish(uint64_t exchange);
  void Abandon(uint64_t exchange);
  void SetOnRoom(uint64_t exchange, std::function<void()> on_room);
  void SetOnClosed(uint64_t exchange, std::function<void()> on_closed);

  // One handler: what it could not allocate ends this exchange, and no other.
  template <class Act>
  void Run(Act&& act) {
    try {
      act();
    } catch (const std::bad_alloc&) {
      OnOutOfMemory();
    }
  }

  Loop& loop() { return *loop_; }
  int64_t pending_bytes() const { return pending_bytes_; }

 private:
  enum class Phase { kReading, kHandling, kLingering, kClosed };
  enum class Answer { kNone, kStreaming, kComplete };

  void BeginRequest();
  void Advance();
  void OnHead();
  void Dispatch();
  void Refuse(HttpResponse response);
  void EndExchange();
  void Linger();

  void ReadMore();
  void OnRead(const ErrorCode& error, size_t num_bytes);
  void Queue(std::string bytes);
  void WriteMore();
  void WriteSlice(size_t offset, size_t armed_at);
  void OnSliceWritten();
  void Arm(asio::steady_timer& timer, absl::Duration patience, void (Connection::*expired)());
  void OnReadDeadline();
  void OnOutOfMemory();
  void BeginAnswer(HttpResponse& response, BodyFraming framing);
  bool IsCurrent(uint64_t exchange, Answer state) const {
    return phase_ == Phase::kHandling && exchange == exchange_ && answer_ == state;
  }

  const std::shared_ptr<HttpShared> shared_;
  const std::shared_ptr<Loop> loop_;
  tcp::socket socket_;
  asio::steady_timer read_timer_;
  asio::steady_timer write_timer_;

  Phase phase_ = Phase::kReading;
  std::array<char, kReadBytes> buffer_;
  std::string input_;  // received, not yet parsed
  bool reading_ = false;
  int64_t lingered_bytes_ = 0;

  std::optional<HttpParser> parser_;
  std::shared_ptr<BodyLease> lease_;
  bool admitted_ = false;

  uint64_t exchange_ = 0;
  Answer answer_ = Answer::kNone;
  bool keeps_alive_ = true;
  bool ran_out_of_memory_ = false;  // a read or a write may not have been started
  bool is_head_request_ = false;
  bool can_chunk_ = true;
  std::string request_id_;
  std::string route_;
  std::function<void()> on_room_;
  std::function<void()> on_closed_;

  std::string output_;  // not yet given to the socket
  std::string slice_;   // being written
  bool writing_ = false;
  std::atomic<int64_t> pending_bytes_{0};
};

class Responder final : public HttpResponder {
 public:
  Responder(std::shared_ptr<Connection> connection, uint64_t exchange)
      : connection_(std::move(connection)), exchange_(exchange) {}
  ~Responder() override {
    try {
      Tell(&Connection::Abandon);
    } catch (const std::bad_alloc&) {  // whoever had an answer has given it
    }
  }

  void Send(HttpResponse response) override { Tell(&Connection::Send, std::move(response)); }
  void StartStream(HttpResponse head) override { Tell(&Connection::StartStream, std::move(head)); }
  void Write(std::string bytes) override { Tell(&Connection::Write, std::move(bytes)); }
  void Finish() override { Tell(&Connection::Finish); }
  int64_t pending_bytes() const override { return connection_->pending_bytes(); }
  void SetOnRoom(std::function<void()> on_room) override {
    Tell(&Connection::SetOnRoom, std::move(on_room));
  }
  void SetOnClosed(std::function<void()> on_closed) override {
    Tell(&Connection::SetOnClosed, std::move(on_closed));
  }
  void Post(std::function<void()> work) override { connection_->loop().Post(std::move(work)); }

 private:
  // Calls `act` on the connection's thread, on behalf of this exchange.
  template <class... Args>
  void Tell(void (Connection::*act)(uint64_t, Args...), Args... args) {
    connection_->loop().Post(
        [c = connection_, e = exchange_, act, ... arg = std::move(args)]() mutable {
          c->Run([&] { ((*c).*act)(e, std::move(arg)...); });
        });
  }

  const std::shared_ptr<Connection> connection_;
  const uint64_t exchange_;
};

void Connection::Start() {
  loop_->connections().insert(this);
  ErrorCode ignored;
  socket_.set_option(tcp::no_delay(true), ignored);
  BeginRequest();
}

void Connection::BeginRequest() {
  if (shared_->stopping && input_.empty()) return Close();
  phase_ = Phase::kReading;
  parser_.emplace(HttpParser::Bounds{});
  lease_ = std::make_shared<BodyLease>(shared_);
  admitted_ = false;
  answer_ = Answer::kNone;
  request_id_.clear();
  route_.clear();
  Arm(read_timer_, shared_->options.idle_deadline, &Connection::OnReadDeadline);
  Advance();
}

void Connection::Advance() {
  while (phase_ == Phase::kReading) {
    if (parser_->state() == HttpParser::State::kDone && admitted_) return Dispatch();
    if (input_.empty()) return ReadMore();
    if (!parser_->started()) {
      Arm(read_timer_, shared_->options.header_deadline, &Connection::OnReadDeadline);
    }
    input_.erase(0, parser_->Feed(input_));
    if (parser_->state() == HttpParser::State::kFailed) {
      return Refuse(ErrorResponse(parser_->failure().code, parser_->failure().message));
    }
    if (!admitted_ && parser_->state() != HttpParser::State::kHead) OnHead();
    if (!lease_->GrowTo(static_cast<int64_t>(parser_->request().body.size()))) {
      return Refuse(ErrorResponse(503, "the server holds too many request bodies"));
    }
  }
}

void Connection::OnHead() {
  admitted_ = true;
  HttpRequest& request = parser_->request();
  std::optional<HttpResponse> refusal = shared_->hooks.admit(request);
  request_id_ = request.id;
  route_ = request.route;
  if (refusal.has_value()) return Refuse(*std::move(refusal));
  if (parser_->state() != HttpParser::State::kBody) return;
  Arm(read_timer_, shared_->options.body_deadline, &Connection::OnReadDeadline);
  if (parser_->expects_continue() && input_.empty()) Queue("HTTP/1.1 100 Continue\r\n\r\n");
}

// Ends the reading of a request with an answer. The connection lives on only if the request is
// wholly read.
void Connection::Refuse(HttpResponse response) {
  const bool is_whole = parser_->state() == HttpParser::State::kDone;
  phase_ = Phase::kHandling;
  ++exchange_;
  keeps_alive_ = is_whole && parser_->request().keeps_alive;
  is_head_request_ = parser_->request().method == "HEAD";
  read_timer_.cancel();
  Send(exchange_, std::move(response));
}

void Connection::Dispatch() {
  phase_ = Phase::kHandling;
  ++exchange_;
  HttpRequest request = std::move(parser_->request());
  request.body_lease = std::move(lease_);
  keeps_alive_ = request.keeps_alive;
  is_head_request_ = request.method == "HEAD";
  can_chunk_ = request.minor_version == 1;
  read_timer_.cancel();
  ReadMore();
  shared_->hooks.handle(std::move(request),
                        std::make_shared<Responder>(shared_from_this(), exchange_));
}

void Connection::BeginAnswer(HttpResponse& response, BodyFraming framing) {
  const bool is_last = shared_->stopping || shared_->draining || ran_out_of_memory_;
  if (is_last || framing == BodyFraming::kClose) keeps_alive_ = false;
  response.headers.push_back({"Date", HttpDate()});
  if (!request_id_.empty()) response.headers.push_back({"X-Request-Id", request_id_});
  shared_->hooks.count(route_, response.code);
  Queue(RenderHead(response, framing, keeps_alive_));
}

void Connection::Send(uint64_t exchange, HttpResponse response) {
  if (!IsCurrent(exchange, Answer::kNone)) return;
  BeginAnswer(response, BodyFraming::kLength);
  answer_ = Answer::kComplete;
  on_closed_ = nullptr;
  if (!is_head_request_) Queue(std::move(response.body));
}

void Connection::StartStream(uint64_t exchange, HttpResponse head) {
  if (!IsCurrent(exchange, Answer::kNone)) return;
  BeginAnswer(head, can_chunk_ ? BodyFraming::kChunked : BodyFraming::kClose);
  answer_ = Answer::kStreaming;
}

void Connection::Write(uint64_t exchange, std::string bytes) {
  if (!IsCurrent(exchange, Answer::kStreaming) || bytes.empty()) return;
  Queue(can_chunk_ ? RenderChunk(bytes) : std::move(bytes));
}

void Connection::Finish(uint64_t exchange) {
  if (!IsCurrent(exchange, Answer::kStreaming)) return;
  answer_ = Answer::kComplete;
  on_closed_ = nullptr;
  if (can_chunk_) return Queue(std::string(kLastChunk));
  if (!writing_) EndExchange();
}

void Connection::Abandon(uint64_t exchange) {
  if (IsCurrent(exchange, Answer::kStreaming)) return Close();
  Send(exchange, ErrorResponse(500, "the request was dropped without an answer"));
}

void Connection::SetOnRoom(uint64_t exchange, std::function<void()> on_room) {
  if (phase_ == Phase::kHandling && exchange == exchange_) on_room_ = std::move(on_room);
}

void Connection::SetOnClosed(uint64_t exchange, std::function<void()> on_closed) {
  if (exchange != exchange_ || answer_ == Answer::kComplete) return;
  if (phase_ == Phase::kClosed) return on_closed();
  on_closed_ = std::move(on_closed);
}

void Connection::EndExchange() {
  on_room_ = nullptr;
  if (keeps_alive_) return BeginRequest();
  Linger();
}

void Connection::Linger() {
  phase_ = Phase::kLingering;
  ErrorCode ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  Arm(read_timer_, limits::kHttpLingerDeadline, &Connection::Close);
  input_.clear();
  ReadMore();
}

void Connection::StopWhenIdle() {
  if (phase_ == Phase::kReading && !parser_->started()) Close();
}

void Connection::Close() {
  if (phase_ == Phase::kClosed) return;
  phase_ = Phase::kClosed;
  ErrorCode ignored;
  read_timer_.cancel();
  write_timer_.cancel();
  socket_.close(ignored);
  loop_->connections().erase(this);
  on_room_ = nullptr;
  if (auto on_closed = std::exchange(on_closed_, nullptr)) on_closed();
  {
    const std::lock_guard lock(shared_->mutex);
    --shared_->num_connections;
  }
  shared_->changed.notify_all();
}

void Connection::ReadMore() {
  if (reading_ || phase_ == Phase::kClosed || input_.size() >= kMaxPipelinedBytes) return;
  reading_ = true;
  socket_.async_read_some(asio::buffer(buffer_),
                          [self = shared_from_this()](const ErrorCode& error, size_t num_bytes) {
                            self->Run([&] { self->OnRead(error, num_bytes); });
                          });
}

void Connection::OnRead(const ErrorCode& error, size_t num_bytes) {
  reading_ = false;
  if (phase_ == Phase::kClosed) return;
  if (error) return Close();
  if (phase_ == Phase::kLingering) {
    lingered_bytes_ += static_cast<int64_t>(num_bytes);
    return lingered_bytes_ > kMaxLingerBytes ? Close() : ReadMore();
  }
  input_.append(buffer_.data(), num_bytes);
  if (phase_ == Phase::kReading) return Advance();
  ReadMore();
}

void Connection::Queue(std::string bytes) {
  if (phase_ == Phase::kClosed) return;
  // What is there already counts, not the size of one event: a writer has to look beforehand.
  const bool is_behind = pending_bytes_ > limits::kMaxHttpPendingBytes;
  if (is_behind && answer_ == Answer::kStreaming) return Close();
  output_ += bytes;
  pending_bytes_ += static_cast<int64_t>(bytes.size());
  if (!writing_) WriteMore();
}

void Connection::WriteMore() {
  if (output_.empty()) return;
  writing_ = true;
  slice_ = std::exchange(output_, "");
  WriteSlice(0, 0);
}

// Goes on at `offset`; `armed_at` is where the deadline was last moved: a client may take a long
// time for a long answer, but not for a part of it.
void Connection::WriteSlice(size_t offset, size_t armed_at) {
  if (offset == 0 || offset - armed_at >= kWritePartBytes) {
    Arm(write_timer_, shared_->options.write_deadline, &Connection::Close);
    armed_at = offset;
  }
  socket_.async_write_some(
      asio::buffer(slice_.data() + offset, slice_.size() - offset),
      [self = shared_from_this(), offset, armed_at](const ErrorCode& error, size_t num_bytes) {
        if (self->phase_ == Phase::kClosed) return;
        if (error) return self->Close();
        self->pending_bytes_ -= static_cast<int64_t>(num_bytes);
        const size_t done = offset + num_bytes;
        self->Run([&] {
          done < self->slice_.size() ? self->WriteSlice(done, armed_at) : self->OnSliceWritten();
        });
      });
}

void Connection::OnSliceWritten() {
  writing_ = false;
  if (!output_.empty()) return WriteMore();
  write_timer_.cancel();
  if (phase_ == Phase::kHandling && answer_ == Answer::kComplete) return EndExchange();
  if (on_room_) on_room_();
}

void Connection::Arm(asio::steady_timer& timer, absl::Duration patience,
                     void (Connection::*expired)()) {
  timer.expires_at(ToSteady(MonotonicNow() + patience));
  timer.async_wait([self = shared_from_this(), &timer, expired](const ErrorCode& error) {
    // A wait that had ended before it was cancelled still arrives: only a past deadline counts.
    const bool has_passed = timer.expiry() <= std::chrono::steady_clock::now();
    if (error || !has_passed || self->phase_ == Phase::kClosed) return;
    self->Run([&] { (*self.*expired)(); });
  });
}

// Says so to a client that has got nothing of an answer yet; otherwise, and if that cannot be
// allocated either, the connection's end says it. Closing takes no memory.
void Connection::OnOutOfMemory() {
  ran_out_of_memory_ = true;
  const bool can_tell = !writing_ && pending_bytes_ == 0 && parser_.has_value();
  const bool is_asking = phase_ == Phase::kReading && can_tell && parser_->started();
  const bool is_waiting = phase_ == Phase::kHandling && can_tell && answer_ == Answer::kNone;
  if (!is_asking && !is_waiting) return Close();
  if (auto on_closed = std::exchange(on_closed_, nullptr)) on_closed();
  const absl::Status told = WithinMemory([&] {
    HttpResponse response =
        ErrorResponse(ResourceExhausted("the server is out of memory; try again later"));
    is_asking ? Refuse(std::move(response)) : Send(exchange_, std::move(response));
  });
  if (!told.ok()) Close();
}

void Connection::OnReadDeadline() {
  if (phase_ != Phase::kReading) return;
  if (!parser_->started()) return Close();
  Refuse(ErrorResponse(408, "expected the whole request sooner"));
}

class HttpServer::Impl {
 public:
  Impl(const HttpServerOptions& options, Hooks hooks) : shared_(std::make_shared<HttpShared>()) {
    shared_->options = options;
    shared_->hooks = std::move(hooks);
    for (int32_t i = 0; i < options.num_threads; ++i) loops_.push_back(std::make_shared<Loop>());
  }

  absl::Status Start();
  void Drain() { shared_->draining = true; }
  void Stop(absl::Time deadline);
  int32_t bound_port() const { return bound_port_; }

 private:
  void Accept();
  void OnAccept(const ErrorCode& error, tcp::socket socket, const std::shared_ptr<Loop>& loop);
  // False when there are too many.
  bool CountConnection();
  void RefuseConnection(tcp::socket& socket);

  const std::shared_ptr<HttpShared> shared_;
  std::vector<std::shared_ptr<Loop>> loops_;
  std::vector<std::thread> threads_;
  std::optional<tcp::acceptor> acceptor_;           // on the first loop
  std::optional<asio::steady_timer> accept_pause_;  // on the first loop
  size_t next_loop_ = 0;
  int64_t accept_round_ = 0;  // of the accept that counts
  int32_t bound_port_ = 0;
  std::mutex stop_mutex_;
  bool stopped_ = false;  // guarded by stop_mutex_
};

absl::Status HttpServer::Impl::Start() {
  asio::io_context& context = loops_.front()->context();
  ASSIGN_OR_RETURN(const tcp::endpoint endpoint, Resolve(context, shared_->options));
  acceptor_.emplace(context);
  accept_pause_.emplace(context);
  RETURN_IF_ERROR(Listen(*acceptor_, endpoint));
  ErrorCode ignored;
  bound_port_ = acceptor_->local_endpoint(ignored).port();
  Accept();
  // The socket of a new connection takes memory before our handler is asked.
  loops_.front()->SetOnLostHandler([this] {
    if (shared_->stopping) return;
    ++accept_round_;
    ErrorCode error;
    acceptor_->cancel(error);
    Accept();
  });
  for (const std::shared_ptr<Loop>& loop : loops_) {
    threads_.emplace_back([loop] { loop->Run(); });
  }
  return absl::OkStatus();
}

void HttpServer::Impl::Accept() {
  const std::shared_ptr<Loop>& loop = loops_[next_loop_++ % loops_.size()];
  acceptor_->async_accept(loop->context(), [this, loop, round = accept_round_](
                                               const ErrorCode& error, tcp::socket socket) {
    if (round == accept_round_) OnAccept(error, std::move(socket), loop);
  });
}

void HttpServer::Impl::OnAccept(const ErrorCode& error, tcp::socket socket,
                                const std::shared_ptr<Loop>& loop) {
  if (shared_->stopping) return;
  if (error) {
    // Out of descriptors, most likely: trying again at once would spin.
    LogWarning("cannot accept a connection: {}", error.message());
    accept_pause_->expires_after(std::chrono::milliseconds(100));
    accept_pause_->async_wait([this](const ErrorCode&) {
      if (!shared_->stopping) Accept();
    });
    return;
  }
  if (CountConnection()) {
    const absl::Status begun = WithinMemory([&] {
      auto connection = std::make_shared<Connection>(shared_, loop, std::move(socket));
      loop->Post([connection] { connection->Run([&] { connection->Start(); }); });
    });
    const std::lock_guard lock(shared_->mutex);
    if (!begun.ok()) --shared_->num_connections;
  } else {
    WithinMemory([&] { RefuseConnection(socket); }).IgnoreError();
  }
  // A server that no longer accepts is worse than one that ends.
  if (!WithinMemory([&] { Accept(); }).ok()) Accept();
}

void HttpServer::Impl::RefuseConnection(tcp::socket& socket) {
  HttpResponse response = ErrorResponse(503, "the server has as many connections as it may");
  shared_->hooks.count("", response.code);
  ErrorCode ignored;
  socket.non_blocking(true, ignored);
  socket.write_some(asio::buffer(RenderHead(response, BodyFraming::kLength, false) + response.body),
                    ignored);
}

bool HttpServer::Impl::CountConnection() {
  const std::lock_guard lock(shared_->mutex);
  if (shared_->num_connections >= shared_->options.max_connections) return false;
  ++shared_->num_connections;
  return true;
}

void HttpServer::Impl::Stop(absl::Time deadline) {
  const std::lock_guard stop_lock(stop_mutex_);
  if (stopped_) return;
  stopped_ = true;
  shared_->stopping = true;
  loops_.front()->Post([this] {
    ErrorCode ignored;
    acceptor_->close(ignored);
    accept_pause_->cancel();
  });
  const auto for_each_connection = [this](void (Connection::*act)()) {
    for (const std::shared_ptr<Loop>& loop : loops_) {
      loop->Post([loop, act] {
        const std::vector<Connection*> all(loop->connections().begin(), loop->connections().end());
        for (Connection* connection : all) (connection->*act)();
      });
    }
  };
  for_each_connection(&Connection::StopWhenIdle);
  {
    std::unique_lock lock(shared_->mutex);
    shared_->changed.wait_until(lock, ToSteady(deadline),
                                [this] { return shared_->num_connections == 0; });
  }
  for_each_connection(&Connection::Close);
  for (const std::shared_ptr<Loop>& loop : loops_) loop->End();
  for (std::thread& thread : threads_) thread.join();
}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerOptions& options,
                                                              Hooks hooks) {
  CHECK(options.num_threads > 0);
  auto impl = std::make_shared<Impl>(options, std::move(hooks));
  RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

HttpServer::HttpServer(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() {
  impl_->Stop(absl::InfinitePast());
}
int32_t HttpServer::bound_port() const {
  return impl_->bound_port();
}
void HttpServer::Drain() {
  impl_->Drain();
}
void HttpServer::Stop(absl::Time deadline) {
  impl_->Stop(deadline);
}

}  // namespace polyreme::api
