#include "parallel/launch/host_address.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

namespace polyreme::launch {
namespace {

// Connecting a datagram socket asks the kernel for a route and sends nothing; any port does.
constexpr char kAnyPort[] = "9";

std::string Numeric(const sockaddr_storage& address, socklen_t size) {
  std::array<char, NI_MAXHOST> text{};
  getnameinfo(reinterpret_cast<const sockaddr*>(&address), size, text.data(), text.size(), nullptr,
              0, NI_NUMERICHOST);
  return text.data();
}

}  // namespace

absl::StatusOr<std::string> OwnAddressTowards(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* list = nullptr;
  if (const int error = getaddrinfo(host.c_str(), kAnyPort, &hints, &list); error != 0) {
    return NotFound("cannot find host '{:.80}': {}", host, gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owned(list, freeaddrinfo);
  int failure = 0;
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    const int fd = socket(entry->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
      failure = errno;
      continue;
    }
    sockaddr_storage own{};
    socklen_t size = sizeof(own);
    const bool known = connect(fd, entry->ai_addr, entry->ai_addrlen) == 0 &&
                       getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size) == 0;
    if (!known) failure = errno;
    close(fd);
    if (known) return Numeric(own, size);
  }
  return Unavailable("no route to host '{:.80}': {}", host, std::strerror(failure));
}

bool IsLoopbackAddress(const std::string& numeric) {
  return numeric.starts_with("127.") || numeric == "::1";
}

}  // namespace polyreme::launch
