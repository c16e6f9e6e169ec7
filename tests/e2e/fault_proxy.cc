#include "tests/e2e/fault_proxy.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <utility>

#include "parallel/base/clock.h"
#include "parallel/base/status.h"

namespace polyreme::e2e {
namespace {

// Of one direction: more is left with its sender.
constexpr size_t kHeldBytes = size_t{1} << 20;
constexpr size_t kReadBytes = 16384;
// The thread looks at its orders at least so often.
constexpr int kLookMilliseconds = 5;
// Bytes that are sent one by one before the other connections have their turn.
constexpr int kSegmentsATurn = 512;

sockaddr_in AddressOf(const std::string& host, int32_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  CHECK(inet_pton(AF_INET, host.c_str(), &address.sin_addr) == 1, "{}", host);
  return address;
}

void SetOption(const comm::UniqueFd& socket, int level, int option, int value) {
  setsockopt(socket.get(), level, option, &value, sizeof(value));
}

// Closes with a reset instead of an orderly end.
void CloseHard(comm::UniqueFd& socket) {
  const linger now{.l_onoff = 1, .l_linger = 0};
  setsockopt(socket.get(), SOL_SOCKET, SO_LINGER, &now, sizeof(now));
  socket = comm::UniqueFd();
}

}  // namespace

// What one side has said and the other has not heard yet.
class FaultProxy::Direction {
 public:
  Direction(comm::UniqueFd& from, comm::UniqueFd& to) : from_(from), to_(to) {}

  bool wants_input() const { return from_.valid() && !ended_ && held_ < kHeldBytes; }
  bool wants_output() const { return !chunks_.empty() && chunks_.front().due <= MonotonicNow(); }
  absl::Time next_due() const {
    return chunks_.empty() ? absl::InfiniteFuture() : chunks_.front().due;
  }

  void Read(const Link& link, bool swallowed, FaultProxy& proxy,
            const std::function<void(std::string&)>& change = nullptr) {
    char buffer[kReadBytes];
    const ssize_t count = recv(from_.get(), buffer, sizeof(buffer), 0);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (count <= 0) {
      ended_ = true;
    } else if (swallowed) {
      proxy.bytes_swallowed_ += count;
    } else {
      std::string bytes(buffer, static_cast<size_t>(count));
      if (change) change(bytes);
      chunks_.push_back({MonotonicNow() + link.delay, std::move(bytes)});
      held_ += static_cast<size_t>(count);
    }
  }

  void Write(const Link& link, FaultProxy& proxy) {
    for (int i = 0; i < kSegmentsATurn && wants_output() && to_.valid(); ++i) {
      std::string& bytes = chunks_.front().bytes;
      const size_t most = link.segment_bytes == 0 ? bytes.size() : link.segment_bytes;
      const ssize_t count =
          send(to_.get(), bytes.data(), std::min(most, bytes.size()), MSG_NOSIGNAL);
      if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
      if (count < 0) return Drop(proxy);
      proxy.bytes_passed_ += count;
      ++proxy.segments_;
      held_ -= static_cast<size_t>(count);
      bytes.erase(0, static_cast<size_t>(count));
      if (bytes.empty()) chunks_.pop_front();
    }
    if (!to_.valid()) Drop(proxy);
  }

  // The end is handed on once all before it is; a swallowed one never.
  void HandOnEnd(bool swallowed) {
    if (!ended_ || handed_on_ || !chunks_.empty() || swallowed || !to_.valid()) return;
    shutdown(to_.get(), SHUT_WR);
    handed_on_ = true;
  }

  bool is_over() const { return handed_on_; }

 private:
  struct Chunk {
    absl::Time due;
    std::string bytes;
  };

  void Drop(FaultProxy& proxy) {
    proxy.bytes_swallowed_ += static_cast<int64_t>(held_);
    chunks_.clear();
    held_ = 0;
  }

  comm::UniqueFd& from_;
  comm::UniqueFd& to_;
  std::deque<Chunk> chunks_;
  size_t held_ = 0;
  bool ended_ = false;  // `from` says no more
  bool handed_on_ = false;
};

struct FaultProxy::Connection {
  comm::UniqueFd client;
  comm::UniqueFd server;
  Direction request{client, server};
  Direction answer{server, client};
};

FaultProxy::FaultProxy(const std::string& host, int32_t port, Options options)
    : host_(host), server_port_(port), options_(std::move(options)), link_(options_.link) {
  listener_ = comm::UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  sockaddr_in address = AddressOf(options_.listen, options_.listen_port);
  socklen_t size = sizeof(address);
  CHECK(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), size) == 0);
  CHECK(listen(listener_.get(), SOMAXCONN) == 0);
  CHECK(getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
  port_ = ntohs(address.sin_port);
  thread_ = std::thread([this] { Run(); });
}

FaultProxy::~FaultProxy() {
  ending_ = true;
  thread_.join();
}

std::string FaultProxy::address() const {
  return fmt::format("{}:{}", options_.listen, port_);
}

void FaultProxy::Set(const Link& link) {
  int64_t order = 0;
  {
    const std::lock_guard lock(mutex_);
    link_ = link;
    order = ++num_set_;
  }
  while (num_obeyed_ < order) poll(nullptr, 0, 1);
}

void FaultProxy::Accept() {
  comm::UniqueFd client(accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!client.valid()) return;
  auto connection = std::make_unique<Connection>();
  connection->client = std::move(client);
  connection->server = comm::UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_in address = AddressOf(host_, server_port_);
  // On one machine a connection is made, or refused, at once.
  if (connect(connection->server.get(), reinterpret_cast<const sockaddr*>(&address),
              sizeof(address)) != 0) {
    return CloseHard(connection->client);
  }
  fcntl(connection->server.get(), F_SETFL, O_NONBLOCK);
  SetOption(connection->client, IPPROTO_TCP, TCP_NODELAY, 1);
  SetOption(connection->server, IPPROTO_TCP, TCP_NODELAY, 1);
  connections_.push_back(std::move(connection));
  ++num_connections_;
}

void FaultProxy::ObeyOrders(const Link& link) {
  const bool resets = resets_.exchange(false);
  const bool half_opens = half_opens_.exchange(false);
  for (const auto& connection : connections_) {
    const bool open = connection->client.valid() && connection->server.valid();
    if (open && (resets || half_opens)) ++num_ended_;
    if (resets && connection->client.valid()) CloseHard(connection->client);
    if ((resets || half_opens) && connection->server.valid()) CloseHard(connection->server);
    connection->request.HandOnEnd(link.passage == Passage::kNone);
    connection->answer.HandOnEnd(link.passage != Passage::kBoth);
  }
  std::erase_if(connections_, [](const auto& connection) {
    return (!connection->client.valid() && !connection->server.valid()) ||
           (connection->request.is_over() && connection->answer.is_over());
  });
}

int FaultProxy::WaitMilliseconds() const {
  absl::Time due = absl::InfiniteFuture();
  for (const auto& connection : connections_) {
    due = std::min({due, connection->request.next_due(), connection->answer.next_due()});
  }
  const absl::Duration left = std::max(absl::ZeroDuration(), due - MonotonicNow());
  if (left > absl::Milliseconds(kLookMilliseconds)) return kLookMilliseconds;
  return static_cast<int>(absl::ToInt64Milliseconds(absl::Ceil(left, absl::Milliseconds(1))));
}

void FaultProxy::Run() {
  std::vector<pollfd> polls;
  while (!ending_) {
    Link link;
    {
      const std::lock_guard lock(mutex_);
      link = link_;
      num_obeyed_ = num_set_;
    }
    ObeyOrders(link);
    polls.assign(1, {listener_.get(), POLLIN, 0});
    for (const auto& connection : connections_) {
      // A descriptor of -1 is passed over.
      const auto add = [&](const comm::UniqueFd& socket, const Direction& in,
                           const Direction& out) {
        const short events = static_cast<short>((in.wants_input() ? POLLIN : 0) |
                                                (out.wants_output() ? POLLOUT : 0));
        polls.push_back({events == 0 ? -1 : socket.get(), events, 0});
      };
      add(connection->client, connection->request, connection->answer);
      add(connection->server, connection->answer, connection->request);
    }
    const size_t num_polled = connections_.size();
    if (poll(polls.data(), polls.size(), std::max(1, WaitMilliseconds())) < 0) continue;
    for (size_t i = 0; i < num_polled; ++i) {
      Connection& connection = *connections_[i];
      const bool client_says = (polls[1 + 2 * i].revents & (POLLIN | POLLHUP | POLLERR)) != 0;
      const bool server_says = (polls[2 + 2 * i].revents & (POLLIN | POLLHUP | POLLERR)) != 0;
      if (client_says && connection.request.wants_input()) {
        connection.request.Read(link, link.passage == Passage::kNone || !connection.server.valid(),
                                *this);
      }
      if (server_says && connection.answer.wants_input()) {
        connection.answer.Read(link, link.passage != Passage::kBoth, *this, options_.on_answer);
      }
      connection.request.Write(link, *this);
      connection.answer.Write(link, *this);
    }
    if ((polls[0].revents & POLLIN) != 0) Accept();
  }
}

}  // namespace polyreme::e2e
