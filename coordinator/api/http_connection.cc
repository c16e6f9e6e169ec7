// One Connection is a small state machine on one thread's io_context; nothing in it needs a lock.
//
//   kReading ──whole request──► kHandling ──answered──► kReading, or kLingering ──► kClosed
//      └───refused or malformed─────┘
//
// A read is outstanding in every state but while a pipelining client's bytes wait, so that a client
// that leaves is noticed at once. Lingering: our side is shut, and what still comes is dropped
// briefly, because closing a socket with unread bytes resets it and the answer may never be seen.
#include "coordinator/api/http_connection.h"

#include <utility>

#include "coordinator/api/api_error.h"
#include "parallel/base/clock.h"
#include "parallel/base/out_of_memory.h"

namespace polyreme::api {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr size_t kMaxPipelinedBytes = 64 << 10;
constexpr size_t kWritePartBytes = 256 << 10;
constexpr int64_t kMaxLingerBytes = int64_t{1} << 20;

// What a client is told when there is no memory to say anything else.
constexpr std::string_view kOutOfMemoryHead =
    "HTTP/1.1 503 Service Unavailable\r\n"
    "Content-Type: application/json\r\n"
    "Content-Length: 125\r\n"
    "Retry-After: 1\r\n"
    "Connection: close\r\n\r\n";
constexpr std::string_view kOutOfMemoryBody =
    R"({"error":{"message":"the server is out of memory; try again later",)"
    R"("type":"ServiceUnavailableError","param":null,"code":503}})";
static_assert(kOutOfMemoryBody.size() == 125, "as the head says");

// Work on behalf of one exchange.
class Notice final : public Errand, public HttpNotice, public std::enable_shared_from_this<Notice> {
 public:
  Notice(std::shared_ptr<Connection> connection, uint64_t exchange, std::function<void()> work)
      : connection_(std::move(connection)), exchange_(exchange), work_(std::move(work)) {}
  void Give() noexcept override { connection_->loop().Give(shared_from_this()); }
  void Run() override { work_(); }
  void GiveUp() noexcept override { connection_->CutNow(exchange_); }

 private:
  const std::shared_ptr<Connection> connection_;
  const uint64_t exchange_;
  const std::function<void()> work_;
};

class Responder final : public HttpResponder {
 public:
  Responder(std::shared_ptr<Connection> connection, uint64_t exchange)
      : connection_(std::move(connection)), exchange_(exchange) {}
  ~Responder() override { Tell(&Connection::Abandon); }

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
  void Post(std::function<void()> work) override { MakeNotice(std::move(work))->Give(); }
  std::shared_ptr<HttpNotice> MakeNotice(std::function<void()> work) override {
    return std::make_shared<Notice>(connection_, exchange_, std::move(work));
  }
  void Cut() noexcept override { connection_->Cut(exchange_); }

 private:
  // Calls `act` on the connection's thread, on behalf of this exchange. What follows a part that
  // was lost may not be sent: it would look whole, or wait for a beginning that never comes.
  template <class... Args>
  void Tell(void (Connection::*act)(uint64_t, Args...), Args... args) noexcept {
    const absl::Status told = WithinMemory([&] {
      connection_->loop().Give(
          MakeErrand([c = connection_, e = exchange_, act,
                      ... arg = std::move(args)]() mutable { ((*c).*act)(e, std::move(arg)...); },
                     [c = connection_, e = exchange_] { c->Fail(e); }));
    });
    if (!told.ok()) Cut();
  }

  const std::shared_ptr<Connection> connection_;
  const uint64_t exchange_;
};

}  // namespace

void Connection::Start() {
  loop_->connections().insert(this);
  ErrorCode ignored;
  socket_.set_option(tcp::no_delay(true), ignored);
  // The kernel would let it grow to megabytes, for each of thousands who do not read.
  socket_.set_option(asio::socket_base::send_buffer_size(limits::kHttpSendBufferBytes), ignored);
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
  const bool is_last = shared_->stopping || shared_->draining || framing == BodyFraming::kClose;
  if (is_last) keeps_alive_ = false;
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

// Says so to a client that has got nothing of an answer yet; to others the connection's end says
// it. Takes no memory, and so nothing is waited for: the answer is shorter than any socket's
// buffer.
void Connection::OnOutOfMemory() noexcept {
  if (phase_ == Phase::kClosed) return;
  const bool is_asking = phase_ == Phase::kReading && parser_.has_value() && parser_->started();
  const bool is_waiting = phase_ == Phase::kHandling && answer_ == Answer::kNone;
  if ((is_asking || is_waiting) && !writing_ && pending_bytes_ == 0) {
    WithinMemory([this] { shared_->hooks.count(route_, 503); }).IgnoreError();
    ErrorCode ignored;
    socket_.non_blocking(true, ignored);
    const std::array answer = {asio::buffer(kOutOfMemoryHead.data(), kOutOfMemoryHead.size()),
                               asio::buffer(kOutOfMemoryBody.data(), kOutOfMemoryBody.size())};
    socket_.write_some(answer, ignored);
  }
  Close();
}

void Connection::Fail(uint64_t exchange) noexcept {
  if (exchange == exchange_) OnOutOfMemory();
}

void Connection::CutNow(uint64_t exchange) noexcept {
  const bool is_current = phase_ == Phase::kHandling && exchange == exchange_;
  if (is_current && answer_ != Answer::kComplete) OnOutOfMemory();
}

void Connection::Cut(uint64_t exchange) noexcept {
  // An exchange before the last has ended already.
  uint64_t before = cut_.exchange.load();
  while (before < exchange && !cut_.exchange.compare_exchange_weak(before, exchange)) {
  }
  loop_->Give(std::shared_ptr<Errand>(shared_from_this(), &cut_));
}

void Connection::OnReadDeadline() {
  if (phase_ != Phase::kReading) return;
  if (!parser_->started()) return Close();
  Refuse(ErrorResponse(408, "expected the whole request sooner"));
}

}  // namespace polyreme::api
