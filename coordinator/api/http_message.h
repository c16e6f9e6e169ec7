// One HTTP request as the strict parser accepted it, and one response as a route answers it. Plain
// data.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace polyreme::api {

struct HttpHeader {
  std::string name;  // of a request: in lower case
  std::string value;
};

struct HttpRequest {
  std::string method;  // a token, as it came
  std::string path;    // begins with '/', still percent-encoded: route and key are decided on these
                       // bytes alone
  std::string query;   // behind the '?', without it; may be empty
  int32_t minor_version = 1;  // of HTTP/1.x
  std::vector<HttpHeader> headers;
  std::string body;
  bool keeps_alive = true;  // what version and Connection header ask for
  std::string id;     // X-Request-Id: the client's if it is harmless, else drawn; set by the router
  std::string route;  // the path as the route table has it, for counters; set by the router
  // Holds the body's share of the server's memory for bodies: given back when the last copy of this
  // is gone.
  std::shared_ptr<const void> body_lease;

  // The value of the first header of this (lower-case) name, or nullptr.
  const std::string* Header(std::string_view name) const;
};

struct HttpResponse {
  int32_t code = 200;
  std::string content_type = "application/json";
  std::string body = {};
  std::vector<HttpHeader> headers = {};  // beyond those of framing
};

// "Not Found" for 404; "Status" for codes that we never send.
std::string_view ReasonPhrase(int32_t code);

// Undoes %XX; nothing if an escape is malformed or names a NUL.
std::optional<std::string> PercentDecode(std::string_view text);

// How the length of a response's body is told.
enum class BodyFraming {
  kLength,   // Content-Length
  kChunked,  // Transfer-Encoding: chunked
  kClose,    // the end of the connection (HTTP/1.0 clients of a stream)
};

// The head of `response` up to and including the empty line. Values are checked to hold no line
// ends (our own bug).
std::string RenderHead(const HttpResponse& response, BodyFraming framing, bool keeps_alive);

// Now, as the Date header wants it.
std::string HttpDate();

// One chunk of a chunked body; `bytes` must not be empty, since an empty chunk ends the body.
std::string RenderChunk(std::string_view bytes);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

}  // namespace polyreme::api
