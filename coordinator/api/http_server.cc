#include "coordinator/api/http_server.h"

#include <algorithm>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "coordinator/api/api_error.h"
#include "coordinator/api/http_connection.h"
#include "coordinator/api/http_listener.h"
#include "coordinator/api/http_loop.h"
#include "coordinator/api/http_shared.h"
#include "parallel/base/clock.h"
#include "parallel/base/log.h"
#include "parallel/base/out_of_memory.h"

namespace polyreme::api {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

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
  absl::Duration Stillness() const {
    absl::Duration worst;
    for (const std::shared_ptr<Loop>& loop : loops_) worst = std::max(worst, loop->Stillness());
    return worst;
  }

 private:
  void Accept();
  void OnAcceptable();
  void Take(tcp::socket socket, const std::shared_ptr<Loop>& loop);
  // False when there are too many.
  bool CountConnection();
  void RefuseConnection(tcp::socket& socket);

  const std::shared_ptr<HttpShared> shared_;
  HandlerMemory accept_memory_;
  std::vector<std::shared_ptr<Loop>> loops_;
  std::vector<std::thread> threads_;
  std::optional<tcp::acceptor> acceptor_;           // on the first loop
  std::optional<asio::steady_timer> accept_pause_;  // on the first loop
  size_t next_loop_ = 0;
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
  acceptor_->non_blocking(true, ignored);
  Accept();
  for (const std::shared_ptr<Loop>& loop : loops_) {
    threads_.emplace_back([loop] { loop->Run(); });
  }
  return absl::OkStatus();
}

// The next connection is waited for in memory that is always there, and taken when it has come: a
// server that no longer accepts would be worse than one that ends.
void HttpServer::Impl::Accept() {
  acceptor_->async_wait(tcp::acceptor::wait_read,
                        HandlerIn(accept_memory_, [this](const ErrorCode&) { OnAcceptable(); }));
}

void HttpServer::Impl::OnAcceptable() {
  ErrorCode error;
  while (!shared_->stopping && !error) {
    const std::shared_ptr<Loop>& loop = loops_[next_loop_++ % loops_.size()];
    const absl::Status taken = WithinMemory([&] {
      tcp::socket socket(loop->context());
      acceptor_->accept(socket, error);
      if (!error) Take(std::move(socket), loop);
    });
    if (!taken.ok()) error = asio::error::no_memory;
  }
  if (shared_->stopping) return;
  if (error == asio::error::would_block || error == asio::error::try_again) return Accept();
  // Out of descriptors, most likely, or of memory: trying again at once would spin.
  const absl::Status pauses = WithinMemory([&] {
    LogWarning("cannot accept a connection: {}", error.message());
    accept_pause_->expires_after(std::chrono::milliseconds(100));
    accept_pause_->async_wait([this](const ErrorCode&) {
      if (!shared_->stopping) Accept();
    });
  });
  if (!pauses.ok()) Accept();
}

void HttpServer::Impl::Take(tcp::socket socket, const std::shared_ptr<Loop>& loop) {
  if (!CountConnection()) return RefuseConnection(socket);
  const absl::Status begun = WithinMemory([&] {
    const auto connection = std::make_shared<Connection>(shared_, loop, std::move(socket));
    loop->Give(MakeErrand([connection] { connection->Run([&] { connection->Start(); }); }, [] {}));
  });
  if (begun.ok()) return;
  {
    const std::lock_guard lock(shared_->mutex);
    --shared_->num_connections;
  }
  shared_->changed.notify_all();
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
  const auto never_fails = [] {};
  const auto close_acceptor = [this] {
    ErrorCode ignored;
    acceptor_->close(ignored);
    accept_pause_->cancel();
  };
  loops_.front()->Give(MakeErrand(close_acceptor, never_fails));
  const auto for_each_connection = [&](void (Connection::*act)()) {
    for (const std::shared_ptr<Loop>& loop : loops_) {
      const auto act_on_all = [loop, act] {
        // Those that close leave the set.
        auto& all = loop->connections();
        for (auto it = all.begin(); it != all.end();) ((*it++)->*act)();
      };
      loop->Give(MakeErrand(act_on_all, never_fails));
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
absl::Duration HttpServer::Stillness() const {
  return impl_->Stillness();
}
void HttpServer::Drain() {
  impl_->Drain();
}
void HttpServer::Stop(absl::Time deadline) {
  impl_->Stop(deadline);
}

}  // namespace polyreme::api
