#include "coordinator/text/jinja_text.h"

#include <string.h>
#include <utf8proc.h>

#include <algorithm>

namespace polyreme::text::jinja {

bool Budget::Spend(int64_t steps) {
  if (exhausted()) return false;
  if (steps > steps_left_) {
    status_ = InvalidArgument("expected at most {} steps of evaluation, got more",
                              limits::kMaxTemplateSteps);
    return false;
  }
  steps_left_ -= steps;
  return true;
}

bool Budget::SpendBytes(size_t bytes, size_t size_after) {
  if (exhausted()) return false;
  if (size_after > static_cast<size_t>(limits::kMaxTemplateOutputBytes)) {
    status_ = InvalidArgument("expected text of at most {} bytes, got more",
                              limits::kMaxTemplateOutputBytes);
    return false;
  }
  if (static_cast<int64_t>(bytes) > bytes_left_) {
    status_ = InvalidArgument("expected at most {} bytes of intermediate text, got more",
                              limits::kMaxTemplateWorkBytes);
    return false;
  }
  bytes_left_ -= static_cast<int64_t>(bytes);
  return true;
}

Text::Text(std::string bytes, Origin origin) {
  if (bytes.empty()) return;
  size_ = bytes.size();
  auto rep = std::make_shared<Rep>();
  rep->runs.push_back({bytes.size(), origin});
  rep->bytes = std::move(bytes);
  rep_ = std::move(rep);
}

std::string_view Text::view() const {
  return rep_ ? std::string_view(rep_->bytes).substr(begin_, size_) : std::string_view();
}

Text Text::Slice(size_t begin, size_t end) const {
  end = std::min(end, size_);
  if (begin >= end) return Text();
  Text slice = *this;
  slice.begin_ += begin;
  slice.size_ = end - begin;
  return slice;
}

size_t Text::FirstRun() const {
  const auto run = std::upper_bound(rep_->runs.begin(), rep_->runs.end(), begin_,
                                    [](size_t at, const Run& r) { return at < r.end; });
  return static_cast<size_t>(run - rep_->runs.begin());
}

TextBuilder& TextBuilder::Append(std::string_view bytes, Origin origin) {
  if (bytes.empty() || !budget_.SpendBytes(bytes.size(), size() + bytes.size())) return *this;
  rep_.bytes += bytes;
  if (!rep_.runs.empty() && rep_.runs.back().origin == origin) {
    rep_.runs.back().end = rep_.bytes.size();
  } else {
    budget_.SpendBytes(sizeof(Text::Run), size());
    rep_.runs.push_back({rep_.bytes.size(), origin});
  }
  return *this;
}

TextBuilder& TextBuilder::Append(const Text& text) {
  text.ForEachRun([this](std::string_view bytes, Origin origin) { Append(bytes, origin); });
  return *this;
}

Text TextBuilder::Take() {
  Text text;
  text.size_ = rep_.bytes.size();
  if (text.size_ > 0) text.rep_ = std::make_shared<const Text::Rep>(std::move(rep_));
  rep_ = {};
  return text;
}

CodePoint DecodeAt(std::string_view text, size_t offset) {
  if (offset >= text.size()) return {};
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + offset;
  if (*bytes < 0x80) return {*bytes, 1};
  utf8proc_int32_t value = 0;
  const auto size = utf8proc_iterate(
      bytes, static_cast<utf8proc_ssize_t>(std::min<size_t>(text.size() - offset, 4)), &value);
  if (size <= 0) return {*bytes, 1};
  return {static_cast<uint32_t>(value), static_cast<size_t>(size)};
}

std::string EncodeUtf8(uint32_t code_point) {
  utf8proc_uint8_t bytes[4];
  const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes);
  return std::string(reinterpret_cast<const char*>(bytes), static_cast<size_t>(size));
}

int64_t CountCharacters(std::string_view text) {
  int64_t count = 0;
  for (size_t at = 0; at < text.size(); at += DecodeAt(text, at).size) ++count;
  return count;
}

size_t OffsetOf(std::string_view text, int64_t index) {
  size_t at = 0;
  for (; index > 0 && at < text.size(); --index) at += DecodeAt(text, at).size;
  return at;
}

bool IsSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

bool IsPrintable(uint32_t c) {
  if (c < 0x7F) return c >= 0x20;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    default:
      return true;
  }
}

size_t FindText(std::string_view text, std::string_view needle, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  if (needle.empty()) return from;
  if (needle.size() > text.size() - from) return std::string_view::npos;
  const void* found = memmem(text.data() + from, text.size() - from, needle.data(), needle.size());
  if (found == nullptr) return std::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

}  // namespace polyreme::text::jinja
