#include "coordinator/api/http_parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace polyreme::api {
namespace {

constexpr size_t kMaxMethodBytes = 16;
constexpr size_t kMaxTargetBytes = 8 << 10;
constexpr size_t kMaxHeaders = 100;
constexpr size_t kMaxChunkLineBytes = 16;  // with CR LF; the size fits int64
constexpr size_t kMaxLengthDigits = 18;    // fits int64

// Headers that decide something here: a second one would let two readers decide differently.
constexpr std::array<std::string_view, 6> kSingletons = {
    "content-length", "transfer-encoding", "host", "authorization", "content-type", "expect"};

bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}
bool IsHexDigit(char c) {
  return IsDigit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}
bool IsAlpha(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// tchar of RFC 9110, section 5.6.2.
bool IsTokenCharacter(char c) {
  return IsDigit(c) || IsAlpha(c) ||
         std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}
bool IsToken(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), IsTokenCharacter);
}
bool IsVisible(char c) {
  return c > 0x20 && c < 0x7f;
}
bool IsFieldCharacter(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte == '\t' || (byte >= 0x20 && byte != 0x7f);
}
// What may stand in host[:port]; the port is not ours to check, since we compare whole values only.
bool IsHostCharacter(char c) {
  return IsDigit(c) || IsAlpha(c) || std::string_view("-._~:[]%").find(c) != std::string_view::npos;
}

std::string Lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

std::string_view Trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

}  // namespace

HttpParser::State HttpParser::state() const {
  switch (step_) {
    case Step::kRequestLine:
    case Step::kHeaderLine:
      return State::kHead;
    case Step::kDone:
      return State::kDone;
    case Step::kFailed:
      return State::kFailed;
    default:
      return State::kBody;
  }
}

size_t HttpParser::Feed(std::string_view bytes) {
  const size_t given = bytes.size();
  const bool in_head = state() == State::kHead;
  while (!bytes.empty() && step_ != Step::kDone && step_ != Step::kFailed) {
    if (in_head && state() != State::kHead) break;
    if (step_ == Step::kFixedBody || step_ == Step::kChunkData) {
      TakeBody(bytes);
    } else if (TakeLine(bytes)) {
      OnLine();
    }
  }
  return given - bytes.size();
}

size_t HttpParser::RoomInLine() const {
  if (state() == State::kHead) return static_cast<size_t>(bounds_.head_bytes - head_bytes_);
  return kMaxChunkLineBytes - line_.size();
}

bool HttpParser::TakeLine(std::string_view& bytes) {
  const size_t end = bytes.find('\n');
  std::string_view taken = bytes.substr(0, end == std::string_view::npos ? end : end + 1);
  // The first byte that may not be there decides, so that it does not matter how the bytes arrive.
  const size_t room = RoomInLine();
  const bool too_long = taken.size() > room;
  taken = taken.substr(0, room);
  const size_t carriage_return = taken.find('\r');
  const bool split_pair = !line_.empty() && line_.back() == '\r' && !taken.empty();
  if ((split_pair && taken.front() != '\n') ||
      (carriage_return != std::string_view::npos && carriage_return + 1 < taken.size() &&
       taken[carriage_return + 1] != '\n')) {
    Fail(400, "expected no carriage return but before a line feed");
    return false;
  }
  if (too_long && state() == State::kHead) {
    Fail(431, fmt::format("expected a request line and headers of at most {} bytes in all",
                          bounds_.head_bytes));
    return false;
  }
  if (too_long) {
    Fail(400, "expected a chunk's size or end, got a longer line");
    return false;
  }
  if (state() == State::kHead) head_bytes_ += static_cast<int64_t>(taken.size());
  bytes.remove_prefix(taken.size());
  line_ += taken;
  if (end == std::string_view::npos) return false;
  if (line_.size() < 2 || line_[line_.size() - 2] != '\r') {
    Fail(400, "expected lines to end with CR LF, got a bare line feed");
    return false;
  }
  line_.resize(line_.size() - 2);
  return true;
}

void HttpParser::TakeBody(std::string_view& bytes) {
  const size_t taken = std::min(bytes.size(), static_cast<size_t>(body_bytes_left_));
  request_.body += bytes.substr(0, taken);
  bytes.remove_prefix(taken);
  body_bytes_left_ -= static_cast<int64_t>(taken);
  if (body_bytes_left_ > 0) return;
  step_ = step_ == Step::kFixedBody ? Step::kDone : Step::kChunkEnd;
}

void HttpParser::OnLine() {
  switch (step_) {
    case Step::kRequestLine:
      OnRequestLine();
      break;
    case Step::kHeaderLine:
      line_.empty() ? OnHeadEnd() : OnHeaderLine();
      break;
    case Step::kChunkSize:
      OnChunkSize();
      break;
    case Step::kChunkEnd:
      if (!line_.empty()) return Fail(400, "expected CR LF behind a chunk");
      step_ = Step::kChunkSize;
      break;
    case Step::kLastLine:
      if (!line_.empty()) return Fail(400, "expected no trailers behind the last chunk");
      step_ = Step::kDone;
      break;
    default:
      break;
  }
  line_.clear();
}

void HttpParser::OnRequestLine() {
  const std::string_view line = line_;
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == std::string_view::npos || first == last) {
    return Fail(400, "expected a request line of method, target and version");
  }
  const std::string_view method = line.substr(0, first);
  const std::string_view target = line.substr(first + 1, last - first - 1);
  const std::string_view version = line.substr(last + 1);
  if (!IsToken(method) || method.size() > kMaxMethodBytes) {
    return Fail(400, "expected a method of HTTP");
  }
  if (version.size() != 8 || !version.starts_with("HTTP/") || !IsDigit(version[5]) ||
      version[6] != '.' || !IsDigit(version[7])) {
    return Fail(400, "expected HTTP/1.1 behind the target");
  }
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    return Fail(505, "expected HTTP/1.1 or HTTP/1.0");
  }
  request_.method = method;
  request_.minor_version = version[7] - '0';
  step_ = Step::kHeaderLine;
  OnTarget(target);
}

void HttpParser::OnTarget(std::string_view target) {
  if (target.size() > kMaxTargetBytes) return Fail(414, "expected a target of at most 8192 bytes");
  if (!std::all_of(target.begin(), target.end(), IsVisible) ||
      target.find('#') != std::string_view::npos) {
    return Fail(400, "expected a target of visible ASCII without '#'");
  }
  constexpr std::string_view kScheme = "http://";
  if (Lower(target.substr(0, kScheme.size())) == kScheme) {
    target.remove_prefix(kScheme.size());
    const size_t path = std::min(target.find_first_of("/?"), target.size());
    target_host_ = Lower(target.substr(0, path));
    target.remove_prefix(path);
    if (target_host_.empty()) return Fail(400, "expected a host in the absolute target");
  }
  if (!target.starts_with('/')) return Fail(400, "expected a target that begins with '/'");
  const size_t question = target.find('?');
  request_.path = target.substr(0, question);
  if (question != std::string_view::npos) request_.query = target.substr(question + 1);
}

void HttpParser::OnHeaderLine() {
  const std::string_view line = line_;
  if (line.front() == ' ' || line.front() == '\t') {
    return Fail(400, "expected no folded header lines");
  }
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos || !IsToken(line.substr(0, colon))) {
    return Fail(400, "expected a header's name directly before its colon");
  }
  const std::string_view value = Trim(line.substr(colon + 1));
  if (!std::all_of(value.begin(), value.end(), IsFieldCharacter)) {
    return Fail(400, "expected no control characters in a header's value");
  }
  if (request_.headers.size() >= kMaxHeaders) return Fail(431, "expected at most 100 headers");
  request_.headers.push_back({Lower(line.substr(0, colon)), std::string(value)});
}

const std::string* HttpParser::Only(std::string_view name) {
  const std::string* only = nullptr;
  for (const HttpHeader& header : request_.headers) {
    if (header.name != name) continue;
    if (only != nullptr) {
      Fail(400,
           "expected Content-Length, Transfer-Encoding, Host, Authorization, Content-Type and "
           "Expect "
           "once at most");
      return nullptr;
    }
    only = &header.value;
  }
  return only;
}

void HttpParser::OnHeadEnd() {
  for (const std::string_view name : kSingletons) Only(name);
  CheckHost();
  if (step_ == Step::kFailed) return;
  CheckConnection();
  const std::string* expect = Only("expect");
  if (expect != nullptr && Lower(*expect) != "100-continue") {
    return Fail(417, "expected no other expectation than 100-continue");
  }
  const std::string* length = Only("content-length");
  const std::string* coding = Only("transfer-encoding");
  if (length != nullptr && coding != nullptr) {
    return Fail(400, "expected either Content-Length or Transfer-Encoding, not both");
  }
  if (coding != nullptr) {
    if (request_.minor_version == 0) return Fail(400, "expected no Transfer-Encoding in HTTP/1.0");
    if (Lower(*coding) != "chunked") return Fail(400, "expected Transfer-Encoding to be chunked");
    step_ = Step::kChunkSize;
  } else if (length != nullptr) {
    OnContentLength(*length);
  } else {
    step_ = Step::kDone;
  }
  expects_continue_ = expect != nullptr && request_.minor_version == 1 && state() == State::kBody;
}

void HttpParser::CheckHost() {
  const std::string* host = Only("host");
  if (host == nullptr) {
    if (request_.minor_version == 1) Fail(400, "expected one Host header");
    return;
  }
  if (host->empty() || !std::all_of(host->begin(), host->end(), IsHostCharacter)) {
    return Fail(400, "expected Host to be a name or address, with a port or without");
  }
  if (!target_host_.empty() && target_host_ != Lower(*host)) {
    return Fail(400, "expected the absolute target's host to be the one of the Host header");
  }
}

void HttpParser::CheckConnection() {
  request_.keeps_alive = request_.minor_version == 1;
  for (const HttpHeader& header : request_.headers) {
    if (header.name != "connection") continue;
    std::string_view rest = header.value;
    while (!rest.empty()) {
      const size_t comma = std::min(rest.find(','), rest.size());
      if (Lower(Trim(rest.substr(0, comma))) == "close") request_.keeps_alive = false;
      rest.remove_prefix(std::min(comma + 1, rest.size()));
    }
  }
}

void HttpParser::OnContentLength(std::string_view value) {
  if (value.empty() || !std::all_of(value.begin(), value.end(), IsDigit)) {
    return Fail(400, "expected Content-Length to be digits only");
  }
  if (value.size() > kMaxLengthDigits) return FailTooLong();
  for (const char c : value) body_bytes_left_ = body_bytes_left_ * 10 + (c - '0');
  if (body_bytes_left_ > bounds_.body_bytes) return FailTooLong();
  step_ = body_bytes_left_ == 0 ? Step::kDone : Step::kFixedBody;
}

void HttpParser::OnChunkSize() {
  int64_t size = 0;
  if (line_.empty() || !std::all_of(line_.begin(), line_.end(), IsHexDigit)) {
    return Fail(400, "expected a chunk's size in hexadecimal digits, without extensions");
  }
  for (const char c : line_) {
    const int64_t digit = IsDigit(c) ? c - '0' : (c | 0x20) - 'a' + 10;
    size = size * 16 + digit;
  }
  if (size > bounds_.body_bytes - static_cast<int64_t>(request_.body.size())) {
    return FailTooLong();
  }
  body_bytes_left_ = size;
  step_ = size == 0 ? Step::kLastLine : Step::kChunkData;
}

void HttpParser::FailTooLong() {
  Fail(413, fmt::format("expected a body of at most {} bytes", bounds_.body_bytes));
}

void HttpParser::Fail(int32_t code, std::string_view message) {
  if (step_ == Step::kFailed) return;
  step_ = Step::kFailed;
  request_.keeps_alive = false;
  failure_ = {code, std::string(message)};
}

}  // namespace polyreme::api
