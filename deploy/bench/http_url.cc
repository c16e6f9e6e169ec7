#include "deploy/bench/http_url.h"

#include <algorithm>

namespace polyreme::bench {
namespace {

bool IsPlain(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 127; });
}

bool IsPort(std::string_view text) {
  return !text.empty() && text.size() <= 5 &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; }) &&
         std::stoi(std::string(text)) <= 65535;
}

}  // namespace

std::string HttpUrl::authority() const {
  const bool is_v6 = host.find(':') != std::string::npos;
  return is_v6 ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
}

absl::StatusOr<HttpUrl> ParseHttpUrl(std::string_view text) {
  constexpr std::string_view kScheme = "http://";
  if (text.starts_with("https://")) {
    return InvalidArgument(
        "{:.200}: only http:// is spoken here; put a proxy that ends TLS before it", text);
  }
  const auto malformed = [&] {
    return InvalidArgument("expected http://HOST[:PORT][/PREFIX], got '{:.200}'", text);
  };
  if (!text.starts_with(kScheme) || !IsPlain(text)) return malformed();
  std::string_view rest = text.substr(kScheme.size());
  HttpUrl url;
  const size_t slash = rest.find('/');
  if (slash != std::string_view::npos) url.prefix = rest.substr(slash);
  if (url.prefix.find_first_of("?#") != std::string::npos) return malformed();
  while (url.prefix.ends_with('/')) url.prefix.pop_back();
  if (url.prefix.ends_with("/v1")) url.prefix.resize(url.prefix.size() - 3);
  rest = rest.substr(0, slash);
  url.port = "80";
  size_t colon = rest.rfind(':');
  if (rest.starts_with('[')) {
    const size_t end = rest.find(']');
    if (end == std::string_view::npos) return malformed();
    url.host = rest.substr(1, end - 1);
    colon = end + 1 < rest.size() ? end + 1 : std::string_view::npos;
    if (colon != std::string_view::npos && rest[colon] != ':') return malformed();
  } else {
    url.host = rest.substr(0, colon);
  }
  if (colon != std::string_view::npos) url.port = rest.substr(colon + 1);
  if (url.host.empty() || url.host.find('@') != std::string::npos || !IsPort(url.port)) {
    return malformed();
  }
  return url;
}

}  // namespace polyreme::bench
