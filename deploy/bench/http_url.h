// Where a server is.
#pragma once

#include <string>
#include <string_view>

#include "parallel/base/status.h"

namespace polyreme::bench {

struct HttpUrl {
  std::string host;    // a name or an address, IPv6 without brackets
  std::string port;    // digits
  std::string prefix;  // of every path, "" or "/v1" and the like: no slash at its end

  std::string authority() const;  // "host:port", for the Host header and messages
};

// "http://HOST[:PORT][/PREFIX]". A prefix of "/v1" is dropped: all paths here have it themselves.
// InvalidArgument for anything else; https is refused by name.
absl::StatusOr<HttpUrl> ParseHttpUrl(std::string_view text);

}  // namespace polyreme::bench
