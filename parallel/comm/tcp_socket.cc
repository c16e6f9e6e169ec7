#include "parallel/comm/tcp_socket.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>

#include "parallel/base/clock.h"

namespace polyreme::comm {
namespace {

using AddressList = std::unique_ptr<addrinfo, void (*)(addrinfo*)>;

absl::StatusOr<AddressList> Resolve(const SocketAddress& address) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const std::string port = std::to_string(address.port);
  const int error = ::getaddrinfo(address.host.c_str(), port.c_str(), &hints, &found);
  if (error != 0) {
    return InvalidArgument("expected a numeric address, got '{:.80}': {}", address.host,
                           ::gai_strerror(error));
  }
  return AddressList(found, ::freeaddrinfo);
}

UniqueFd MakeSocket(const addrinfo& address) {
  return UniqueFd(::socket(address.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

// Small messages leave at once; a host that has gone silent is given up after eight seconds, as a
// worker that gives no sign.
void Tune(int socket) {
  const auto set = [&](int level, int option, int value) {
    ::setsockopt(socket, level, option, &value, sizeof(value));
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 3);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 1);
  set(IPPROTO_TCP, TCP_KEEPCNT, 5);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 8 * 1000);
}

uint16_t PortOf(int socket) {
  sockaddr_storage storage{};
  socklen_t size = sizeof(storage);
  ::getsockname(socket, reinterpret_cast<sockaddr*>(&storage), &size);
  return ntohs(storage.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6&>(storage).sin6_port
                   : reinterpret_cast<const sockaddr_in&>(storage).sin_port);
}

}  // namespace

std::string ToString(const SocketAddress& address) {
  return fmt::format("{} {}", address.host, address.port);
}

absl::StatusOr<SocketAddress> ParseSocketAddress(std::string_view text) {
  const size_t space = text.find(' ');
  SocketAddress address;
  if (space != std::string_view::npos) {
    address.host = text.substr(0, space);
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + space + 1, end, address.port);
    if (error == std::errc() && stop == end) return address;
  }
  return DataLoss("expected an address and a port, got '{:.80}'", text);
}

absl::StatusOr<UniqueFd> Listen(const std::string& host, SocketAddress& bound) {
  ASSIGN_OR_RETURN(const AddressList list, Resolve({host, 0}));
  UniqueFd listener = MakeSocket(*list);
  if (!listener.valid() || ::bind(listener.get(), list->ai_addr, list->ai_addrlen) != 0 ||
      ::listen(listener.get(), SOMAXCONN) != 0) {
    return FailedPrecondition("cannot listen on {}: {}", host, std::strerror(errno));
  }
  bound = {host, PortOf(listener.get())};
  return listener;
}

UniqueFd Accept(const UniqueFd& listener) {
  UniqueFd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (socket.valid()) Tune(socket.get());
  return socket;
}

absl::StatusOr<UniqueFd> Connect(const SocketAddress& address, absl::Time deadline) {
  ASSIGN_OR_RETURN(const AddressList list, Resolve(address));
  UniqueFd socket = MakeSocket(*list);
  if (!socket.valid()) return ResourceExhausted("no socket: {}", std::strerror(errno));
  Tune(socket.get());
  int error = 0;
  if (::connect(socket.get(), list->ai_addr, list->ai_addrlen) != 0) {
    error = errno;
    if (error == EINPROGRESS) {
      RETURN_IF_ERROR(WaitFor(socket, POLLOUT, deadline));
      socklen_t size = sizeof(error);
      ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    }
  }
  if (error != 0) {
    return Unavailable("cannot connect to {}: {}", ToString(address), std::strerror(error));
  }
  return socket;
}

absl::Status WriteAll(const UniqueFd& socket, absl::Span<const std::byte> bytes,
                      absl::Time deadline) {
  while (!bytes.empty()) {
    const ssize_t count = ::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count > 0) {
      bytes.remove_prefix(static_cast<size_t>(count));
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      RETURN_IF_ERROR(WaitFor(socket, POLLOUT, deadline));
    } else if (errno != EINTR) {
      return Unavailable("connection lost: {}", std::strerror(errno));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadAll(const UniqueFd& socket, absl::Span<std::byte> bytes, absl::Time deadline) {
  while (!bytes.empty()) {
    const ssize_t count = ::recv(socket.get(), bytes.data(), bytes.size(), 0);
    if (count > 0) {
      bytes.remove_prefix(static_cast<size_t>(count));
    } else if (count == 0) {
      return Unavailable("connection closed by the other side");
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      RETURN_IF_ERROR(WaitFor(socket, POLLIN, deadline));
    } else if (errno != EINTR) {
      return Unavailable("connection lost: {}", std::strerror(errno));
    }
  }
  return absl::OkStatus();
}

absl::Status WaitFor(const UniqueFd& socket, short events, absl::Time deadline) {
  pollfd item{socket.get(), events, 0};
  while (::poll(&item, 1, PollTimeout(deadline)) <= 0) {
    if (MonotonicNow() >= deadline) return DeadlineExceeded("no answer in time");
  }
  return absl::OkStatus();
}

int PollTimeout(absl::Time deadline) {
  const absl::Duration left =
      std::clamp(deadline - MonotonicNow(), absl::ZeroDuration(), absl::Seconds(1));
  return static_cast<int>(absl::ToInt64Milliseconds(absl::Ceil(left, absl::Milliseconds(1))));
}

}  // namespace polyreme::comm
