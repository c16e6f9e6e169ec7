// The few things done with sockets, with deadlines and errors that name the address.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "parallel/base/status.h"
#include "parallel/comm/unique_fd.h"

namespace polyreme::comm {

struct SocketAddress {
  std::string host;  // numeric IPv4 or IPv6
  uint16_t port = 0;
};
std::string ToString(const SocketAddress& address);  // "127.0.0.2 4711"
absl::StatusOr<SocketAddress> ParseSocketAddress(std::string_view text);

// A listener on a port of the system's choice; `bound` says which.
absl::StatusOr<UniqueFd> Listen(const std::string& host, SocketAddress& bound);
// The next connection that waits on a listener; an invalid descriptor if there is none.
UniqueFd Accept(const UniqueFd& listener);
// Connected, or DeadlineExceeded, or Unavailable.
absl::StatusOr<UniqueFd> Connect(const SocketAddress& address, absl::Time deadline);

// All sockets here never block; these two wait for the whole of `bytes`.
absl::Status WriteAll(const UniqueFd& socket, absl::Span<const std::byte> bytes,
                      absl::Time deadline);
absl::Status ReadAll(const UniqueFd& socket, absl::Span<std::byte> bytes, absl::Time deadline);

// poll(2) on one socket. DeadlineExceeded.
absl::Status WaitFor(const UniqueFd& socket, short events, absl::Time deadline);
// Milliseconds for poll(2), rounded up; at most a second, so that callers look at their deadline
// again.
int PollTimeout(absl::Time deadline);

}  // namespace polyreme::comm
