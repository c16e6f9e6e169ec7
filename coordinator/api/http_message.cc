#include "coordinator/api/http_message.h"

#include <fmt/format.h>

#include <iterator>
#include <utility>

#include "absl/time/time.h"
#include "parallel/base/clock.h"
#include "parallel/base/status.h"

namespace polyreme::api {
namespace {

int32_t HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

void AppendHeader(std::string& out, std::string_view name, std::string_view value) {
  CHECK(value.find_first_of("\r\n") == std::string_view::npos, "header {} would split the response",
        name);
  fmt::format_to(std::back_inserter(out), "{}: {}\r\n", name, value);
}

constexpr std::pair<int32_t, std::string_view> kReasons[] = {
    {100, "Continue"},
    {200, "OK"},
    {400, "Bad Request"},
    {401, "Unauthorized"},
    {403, "Forbidden"},
    {404, "Not Found"},
    {405, "Method Not Allowed"},
    {408, "Request Timeout"},
    {409, "Conflict"},
    {413, "Content Too Large"},
    {414, "URI Too Long"},
    {415, "Unsupported Media Type"},
    {417, "Expectation Failed"},
    {422, "Unprocessable Content"},
    {429, "Too Many Requests"},
    {431, "Request Header Fields Too Large"},
    {500, "Internal Server Error"},
    {501, "Not Implemented"},
    {503, "Service Unavailable"},
    {504, "Gateway Timeout"},
    {505, "HTTP Version Not Supported"},
};

}  // namespace

const std::string* HttpRequest::Header(std::string_view name) const {
  for (const HttpHeader& header : headers) {
    if (header.name == name) return &header.value;
  }
  return nullptr;
}

std::string_view ReasonPhrase(int32_t code) {
  for (const auto& [known, text] : kReasons) {
    if (known == code) return text;
  }
  return "Status";
}

std::optional<std::string> PercentDecode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    if (text.size() - i < 3) return std::nullopt;
    const int32_t high = HexDigit(text[i + 1]);
    const int32_t low = HexDigit(text[i + 2]);
    if (high < 0 || low < 0 || high + low == 0) return std::nullopt;
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

std::string RenderHead(const HttpResponse& response, BodyFraming framing, bool keeps_alive) {
  std::string out = fmt::format("HTTP/1.1 {} {}\r\n", response.code, ReasonPhrase(response.code));
  AppendHeader(out, "Content-Type", response.content_type);
  if (framing == BodyFraming::kLength) {
    AppendHeader(out, "Content-Length", std::to_string(response.body.size()));
  }
  if (framing == BodyFraming::kChunked) AppendHeader(out, "Transfer-Encoding", "chunked");
  AppendHeader(out, "Connection", keeps_alive ? "keep-alive" : "close");
  for (const HttpHeader& header : response.headers) AppendHeader(out, header.name, header.value);
  out += "\r\n";
  return out;
}

std::string HttpDate() {
  return absl::FormatTime("%a, %d %b %Y %H:%M:%S GMT", MonotonicNow(), absl::UTCTimeZone());
}

std::string RenderChunk(std::string_view bytes) {
  CHECK(!bytes.empty());
  return fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes);
}

}  // namespace polyreme::api
