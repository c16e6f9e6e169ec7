#include "coordinator/api/router.h"

#include <sys/random.h>

#include <algorithm>
#include <array>
#include <utility>

#include "coordinator/api/api_error.h"
#include "parallel/base/status.h"

namespace polyreme::api {
namespace {

constexpr size_t kMaxRequestIdBytes = 128;

bool Matches(const Route& route, std::string_view path) {
  if (!route.path.ends_with("/*")) return route.path == path;
  const size_t prefix_bytes = route.path.size() - 1;
  return path.size() > prefix_bytes &&
         path.substr(0, prefix_bytes) == route.path.substr(0, prefix_bytes);
}

bool Answers(const Route& route, std::string_view method) {
  return route.method == method || (route.method == "GET" && method == "HEAD");
}

std::string DrawRequestId() {
  std::array<unsigned char, 16> bytes{};
  CHECK(getrandom(bytes.data(), bytes.size(), 0) == std::ssize(bytes));
  std::string id;
  for (const unsigned char byte : bytes) id += fmt::format("{:02x}", byte);
  return id;
}

// The client's own id if it can stand in logs and in a header; otherwise one of ours.
std::string RequestId(const HttpRequest& head) {
  const std::string* given = head.Header("x-request-id");
  if (given == nullptr || given->empty() || given->size() > kMaxRequestIdBytes)
    return DrawRequestId();
  const bool harmless = std::all_of(given->begin(), given->end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.' || c == ':';
  });
  return harmless ? *given : DrawRequestId();
}

// "localhost", an IPv4 or a bracketed IPv6 address, with a port or without. A web page that had its
// name resolved to this machine comes with its own name here, in Host as in Origin.
bool IsLocalName(std::string_view host) {
  if (host.starts_with('[')) return true;
  host = host.substr(0, host.find(':'));
  const bool is_ipv4 = !host.empty() && std::all_of(host.begin(), host.end(), [](char c) {
    return (c >= '0' && c <= '9') || c == '.';
  });
  return is_ipv4 || host == "localhost" || host.ends_with(".localhost");
}

bool ComesFromAWebPageElsewhere(const HttpRequest& head) {
  const std::string* host = head.Header("host");
  if (host != nullptr && !IsLocalName(*host)) return true;
  const std::string* origin = head.Header("origin");
  if (origin == nullptr) return false;
  const size_t scheme_end = origin->find("://");
  return scheme_end == std::string::npos ||
         !IsLocalName(std::string_view(*origin).substr(scheme_end + 3));
}

bool IsJson(const HttpRequest& head) {
  const std::string* type = head.Header("content-type");
  if (type == nullptr) return false;
  std::string essence = type->substr(0, type->find(';'));
  while (essence.ends_with(' ')) essence.pop_back();
  std::transform(essence.begin(), essence.end(), essence.begin(),
                 [](char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c); });
  return essence == "application/json";
}

HttpResponse RefuseWithoutKey() {
  HttpResponse response =
      ErrorResponse(401, "expected 'Authorization: Bearer <key>' with a key of this server");
  response.headers.push_back({"WWW-Authenticate", "Bearer"});
  return response;
}

}  // namespace

Router::Router(std::vector<Route> routes, const ApiKeys& keys)
    : routes_(std::move(routes)), keys_(keys) {}

const Route* Router::Find(std::string_view method, std::string_view path) const {
  for (const Route& route : routes_) {
    if (Answers(route, method) && Matches(route, path)) return &route;
  }
  return nullptr;
}

std::string Router::AllowedMethods(std::string_view path) const {
  std::string methods;
  for (const Route& route : routes_) {
    if (!Matches(route, path)) continue;
    if (!methods.empty()) methods += ", ";
    methods += route.method == "GET" ? "GET, HEAD" : route.method;
  }
  return methods;
}

std::optional<HttpResponse> Router::Admit(HttpRequest& head) const {
  head.id = RequestId(head);
  const Route* route = Find(head.method, head.path);
  if (route != nullptr) head.route = route->path;
  // Keys come first: without one, a stranger does not even learn which paths there are.
  const bool is_open = route != nullptr && route->access == Access::kOpen;
  const std::string* authorization = head.Header("authorization");
  if (!is_open && !keys_.Opens(authorization == nullptr ? "" : *authorization)) {
    return RefuseWithoutKey();
  }
  if (!keys_.required() && ComesFromAWebPageElsewhere(head)) {
    return ErrorResponse(403,
                         "expected Host and Origin to be localhost or an address; a server that is "
                         "reached by a name needs an API key");
  }
  if (route == nullptr) {
    const std::string allowed = AllowedMethods(head.path);
    if (allowed.empty()) return ErrorResponse(404, "there is nothing at this path");
    HttpResponse response = ErrorResponse(405, fmt::format("expected method {} at this path, got {}", allowed, head.method));
    response.headers.push_back({"Allow", allowed});
    return response;
  }
  const std::string* encoding = head.Header("content-encoding");
  if (encoding != nullptr && *encoding != "identity") {
    return ErrorResponse(415, "expected a body without Content-Encoding");
  }
  if (head.method == "POST" && !IsJson(head)) {
    return ErrorResponse(415, "expected Content-Type: application/json");
  }
  return std::nullopt;
}

void Router::Handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) const {
  const Route* route = Find(request.method, request.path);
  CHECK(route != nullptr, "a request that was not admitted");
  route->handle(std::move(request), std::move(responder));
}

}  // namespace polyreme::api
