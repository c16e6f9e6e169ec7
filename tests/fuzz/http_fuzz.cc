// Requests as bytes. First byte: the size of the pieces they arrive in. However they are cut, the
// same must come out.
#include "coordinator/api/http_parser.h"

#include <algorithm>

#include "tests/fuzz/fuzz.h"

namespace polyreme::api {
namespace {

constexpr HttpParser::Bounds kBounds{.head_bytes = 2048, .body_bytes = 4096};

// Feeds until the request is there, has failed, or all is taken. Returns how much was taken.
size_t FeedAll(HttpParser& parser, std::string_view bytes, size_t piece) {
  size_t taken = 0;
  while (taken < bytes.size() && parser.state() != HttpParser::State::kDone &&
         parser.state() != HttpParser::State::kFailed) {
    const HttpParser::State before = parser.state();
    const size_t count = parser.Feed(bytes.substr(taken, piece));
    CHECK(count <= std::min(piece, bytes.size() - taken));
    CHECK(count > 0 || parser.state() != before, "no progress");
    taken += count;
  }
  return taken;
}

void CheckOutcome(HttpParser& parser) {
  if (parser.state() == HttpParser::State::kFailed) {
    CHECK(parser.failure().code >= 400 && parser.failure().code < 600);
    CHECK(!parser.failure().message.empty());
    CHECK(parser.failure().message.size() <= fuzz::kMaxRefusalBytes);
    return;
  }
  if (parser.state() != HttpParser::State::kDone) return;
  const HttpRequest& request = parser.request();
  CHECK(!request.method.empty());
  CHECK(request.path.starts_with('/') || request.path == "*", "path {}", request.path);
  CHECK(std::ssize(request.body) <= kBounds.body_bytes);
  for (const HttpHeader& header : request.headers) {
    CHECK(!header.name.empty());
    for (const char c : header.name) CHECK(c > ' ' && c < 127 && !(c >= 'A' && c <= 'Z'));
    for (const char c : header.value) CHECK(c != '\r' && c != '\n' && c != '\0');
  }
  if (const std::optional<std::string> path = PercentDecode(request.path)) {
    CHECK(path->size() <= request.path.size());
    CHECK(path->find('\0') == std::string::npos);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const size_t piece = size_t{data[0]} + 1;
  const std::string_view bytes = polyreme::fuzz::AsText(data + 1, size - 1);
  HttpParser whole(kBounds), in_pieces(kBounds);
  const size_t taken = FeedAll(whole, bytes, bytes.size() + 1);
  const size_t taken_in_pieces = FeedAll(in_pieces, bytes, piece);
  CheckOutcome(whole);
  CHECK(whole.state() == in_pieces.state(), "cut in pieces it reads differently");
  CHECK(whole.failure().code == in_pieces.failure().code);
  if (whole.state() == HttpParser::State::kDone) {
    CHECK(taken == taken_in_pieces);
    const HttpRequest& a = whole.request();
    const HttpRequest& b = in_pieces.request();
    CHECK(a.method == b.method && a.path == b.path && a.query == b.query && a.body == b.body);
    CHECK(a.headers.size() == b.headers.size() && a.keeps_alive == b.keeps_alive);
  }
  return 0;
}

}  // namespace polyreme::api
