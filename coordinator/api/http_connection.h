// One connection of the HTTP server. Only http_connection.cc and http_server.cc include this.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "coordinator/api/errand.h"
#include "coordinator/api/http_loop.h"
#include "coordinator/api/http_parser.h"
#include "coordinator/api/http_shared.h"

namespace polyreme::api {

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<HttpShared> shared, std::shared_ptr<Loop> loop,
             boost::asio::ip::tcp::socket socket)
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
  // One of the above ran out of memory half-way.
  void Fail(uint64_t exchange) noexcept;
  // There will be no more of the answer, if it is not whole.
  void CutNow(uint64_t exchange) noexcept;
  // The same from any thread, soon.
  void Cut(uint64_t exchange) noexcept;

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
  void OnRead(const boost::system::error_code& error, size_t num_bytes);
  void Queue(std::string bytes);
  void WriteMore();
  void WriteSlice(size_t offset, size_t armed_at);
  void OnSliceWritten();
  void Arm(boost::asio::steady_timer& timer, absl::Duration patience,
           void (Connection::*expired)());
  void OnReadDeadline();
  void OnOutOfMemory() noexcept;
  void BeginAnswer(HttpResponse& response, BodyFraming framing);
  bool IsCurrent(uint64_t exchange, Answer state) const {
    return phase_ == Phase::kHandling && exchange == exchange_ && answer_ == state;
  }

  const std::shared_ptr<HttpShared> shared_;
  const std::shared_ptr<Loop> loop_;
  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer read_timer_;
  boost::asio::steady_timer write_timer_;

  Phase phase_ = Phase::kReading;
  std::array<char, size_t{16} << 10> buffer_;
  std::string input_;  // received, not yet parsed
  bool reading_ = false;
  int64_t lingered_bytes_ = 0;

  std::optional<HttpParser> parser_;
  std::shared_ptr<BodyLease> lease_;
  bool admitted_ = false;

  uint64_t exchange_ = 0;
  Answer answer_ = Answer::kNone;
  bool keeps_alive_ = true;
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

  class CutErrand final : public Errand {
   public:
    explicit CutErrand(Connection& connection) : connection_(connection) {}
    void Run() override { connection_.CutNow(exchange); }
    void GiveUp() noexcept override { connection_.CutNow(exchange); }
    std::atomic<uint64_t> exchange{0};  // the last that is to be cut

   private:
    Connection& connection_;
  };
  CutErrand cut_{*this};
};

}  // namespace polyreme::api
