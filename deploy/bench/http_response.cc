#include "deploy/bench/http_response.h"

#include <algorithm>
#include <charconv>

namespace polyreme::bench {
namespace {

std::string Lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// All of `text` as a number that is not negative; -1 if it is none.
int64_t Number(std::string_view text, int base) {
  int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return -1;
  return text.front() == '-' ? -1 : value;
}

}  // namespace

ResponseParser::State ResponseParser::state() const {
  switch (step_) {
    case Step::kStatusLine:
    case Step::kHeader:
      return State::kHead;
    case Step::kDone:
      return State::kDone;
    case Step::kFailed:
      return State::kFailed;
    default:
      return State::kBody;
  }
}

size_t ResponseParser::Feed(std::string_view bytes,
                            absl::FunctionRef<void(std::string_view)> on_body) {
  const size_t size = bytes.size();
  while (!bytes.empty() && step_ != Step::kDone && step_ != Step::kFailed) {
    if (step_ == Step::kUntilEnd) {
      on_body(bytes);
      return size;
    }
    if (step_ != Step::kFixed && step_ != Step::kChunk) {
      if (TakeLine(bytes)) OnLine();
      continue;
    }
    const auto part = static_cast<size_t>(std::min(left_, static_cast<int64_t>(bytes.size())));
    on_body(bytes.substr(0, part));
    bytes.remove_prefix(part);
    left_ -= static_cast<int64_t>(part);
    if (left_ == 0) step_ = step_ == Step::kFixed ? Step::kDone : Step::kChunkEnd;
  }
  return size - bytes.size();
}

void ResponseParser::FeedEnd() {
  if (step_ == Step::kUntilEnd) {
    step_ = Step::kDone;
  } else if (step_ != Step::kDone && step_ != Step::kFailed) {
    Fail(state() == State::kHead ? "the connection ended before an answer"
                                 : "the connection ended within the answer");
  }
}

bool ResponseParser::TakeLine(std::string_view& bytes) {
  const size_t end = bytes.find('\n');
  const std::string_view part = bytes.substr(0, end);
  bytes.remove_prefix(end == std::string_view::npos ? bytes.size() : end + 1);
  head_bytes_ += step_ == Step::kChunkSize || step_ == Step::kChunkEnd ? 0 : part.size() + 1;
  if (head_bytes_ > kMaxHeadBytes || line_.size() + part.size() > kMaxHeadBytes) {
    Fail("a head of more than 64 KiB");
    return false;
  }
  line_ += part;
  if (end == std::string_view::npos) return false;
  if (line_.ends_with('\r')) line_.pop_back();
  return true;
}

void ResponseParser::OnLine() {
  switch (step_) {
    case Step::kStatusLine:
      OnStatusLine();
      break;
    case Step::kHeader:
      line_.empty() ? OnHeadEnd() : OnHeader();
      break;
    case Step::kChunkSize:
      OnChunkSize();
      break;
    case Step::kChunkEnd:
      line_.empty() ? void(step_ = Step::kChunkSize) : Fail("bytes behind a chunk's end");
      break;
    case Step::kTrailer:
      if (line_.empty()) step_ = Step::kDone;
      break;
    default:
      break;
  }
  line_.clear();
}

void ResponseParser::OnStatusLine() {
  const std::string_view line = line_;
  if (!line.starts_with("HTTP/1.") || line.size() < 12 || line[8] != ' ' ||
      (line[7] != '0' && line[7] != '1')) {
    return Fail("no HTTP/1 status line: is this an HTTP server?");
  }
  const int64_t code = Number(line.substr(9, 3), 10);
  if (code < 100 || code > 599 || (line.size() > 12 && line[12] != ' ')) {
    return Fail("a status line without a code");
  }
  code_ = static_cast<int32_t>(code);
  keeps_alive_ = line[7] == '1';
  content_type_.clear();
  is_chunked_ = false;
  length_ = -1;
  step_ = Step::kHeader;
}

void ResponseParser::OnHeader() {
  const size_t colon = line_.find(':');
  if (colon == std::string::npos || colon == 0) return Fail("a header without a name");
  const std::string name = Lower(std::string_view(line_).substr(0, colon));
  const std::string_view value = Trim(std::string_view(line_).substr(colon + 1));
  if (name == "content-length") {
    const int64_t length = value.empty() ? -1 : Number(value, 10);
    if (length < 0 || (length_ >= 0 && length_ != length)) return Fail("a bad Content-Length");
    length_ = length;
  } else if (name == "transfer-encoding") {
    if (Lower(value) != "chunked" || is_chunked_) return Fail("a Transfer-Encoding but chunked");
    is_chunked_ = true;
  } else if (name == "connection") {
    const std::string options = Lower(value);
    if (options.find("close") != std::string::npos) keeps_alive_ = false;
    if (options.find("keep-alive") != std::string::npos) keeps_alive_ = true;
  } else if (name == "content-type") {
    content_type_ = Lower(value);
  }
}

void ResponseParser::OnHeadEnd() {
  if (code_ == 101) return Fail("a change of protocol that nobody asked for");
  if (code_ < 200) {
    step_ = Step::kStatusLine;
  } else if (code_ == 204 || code_ == 304) {
    step_ = Step::kDone;
  } else if (is_chunked_) {
    if (length_ >= 0) return Fail("both a Content-Length and chunks");
    step_ = Step::kChunkSize;
  } else if (length_ >= 0) {
    left_ = length_;
    step_ = length_ == 0 ? Step::kDone : Step::kFixed;
  } else {
    until_end_ = true;
    step_ = Step::kUntilEnd;
  }
}

void ResponseParser::OnChunkSize() {
  const std::string_view size = Trim(std::string_view(line_).substr(0, line_.find(';')));
  left_ = size.empty() ? -1 : Number(size, 16);
  if (left_ < 0) return Fail("a chunk without a size");
  step_ = left_ == 0 ? Step::kTrailer : Step::kChunk;
}

void ResponseParser::Fail(std::string_view what) {
  failure_ = DataLoss("{}", what);
  step_ = Step::kFailed;
}

}  // namespace polyreme::bench
