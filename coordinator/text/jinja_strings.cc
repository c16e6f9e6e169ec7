#include <utf8proc.h>

#include <algorithm>

#include "coordinator/text/jinja_builtins.h"

namespace polyreme::text::jinja {
namespace {

uint32_t Map(utf8proc_int32_t (*map)(utf8proc_int32_t), uint32_t c) {
  return static_cast<uint32_t>(map(static_cast<utf8proc_int32_t>(c)));
}

bool IsCased(uint32_t c) {
  return Map(utf8proc_toupper, c) != c || Map(utf8proc_tolower, c) != c;
}

std::string Upper(uint32_t c) {
  return c == 0xDF ? "SS" : EncodeUtf8(Map(utf8proc_toupper, c));
}

std::string Convert(uint32_t c, Case to, bool after_cased, bool first) {
  switch (to) {
    case Case::kUpper:
      return Upper(c);
    case Case::kLower:
      return EncodeUtf8(Map(utf8proc_tolower, c));
    case Case::kSwap:
      return Map(utf8proc_tolower, c) != c ? EncodeUtf8(Map(utf8proc_tolower, c)) : Upper(c);
    case Case::kTitle:
      return EncodeUtf8(Map(after_cased ? utf8proc_tolower : utf8proc_totitle, c));
    case Case::kCapitalize:
      return EncodeUtf8(Map(first ? utf8proc_totitle : utf8proc_tolower, c));
  }
  return {};
}

// Offset of the character that ends at `end`.
size_t PreviousOffset(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && end - at < 4 && (static_cast<unsigned char>(text[at]) & 0xC0u) == 0x80u) --at;
  return at + DecodeAt(text, at).size == end ? at : end - 1;
}

bool IsLineBreak(uint32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

// Last occurrence of `needle` that ends at or before `end`.
size_t FindLast(std::string_view text, std::string_view needle, size_t end) {
  if (needle.size() > end) return std::string_view::npos;
  return text.rfind(needle, end - needle.size());
}

std::vector<Value> SplitAtSpace(const Context& context, const Text& text, int64_t limit) {
  std::vector<Value> parts;
  const std::string_view view = text.view();
  size_t at = 0;
  while (context.budget.Spend(1)) {
    for (CodePoint c = DecodeAt(view, at); c.size > 0 && IsSpace(c.value); c = DecodeAt(view, at)) {
      at += c.size;
    }
    if (at >= view.size()) break;
    if (limit >= 0 && std::ssize(parts) == limit) {
      parts.emplace_back(text.Slice(at, view.size()));
      break;
    }
    size_t end = at;
    for (CodePoint c = DecodeAt(view, end); c.size > 0 && !IsSpace(c.value);
         c = DecodeAt(view, end)) {
      end += c.size;
    }
    parts.emplace_back(text.Slice(at, end));
    at = end;
  }
  return parts;
}

std::vector<Value> SplitAtSpaceFromRight(const Context& context, const Text& text, int64_t limit) {
  std::vector<Value> parts;
  Text rest = Strip(text, Side::kRight, nullptr);
  while (!rest.empty() && context.budget.Spend(1)) {
    if (limit >= 0 && std::ssize(parts) == limit) {
      parts.emplace_back(rest);
      break;
    }
    const std::string_view view = rest.view();
    size_t begin = view.size();
    while (begin > 0) {
      const size_t previous = PreviousOffset(view, begin);
      if (IsSpace(DecodeAt(view, previous).value)) break;
      begin = previous;
    }
    parts.emplace_back(rest.Slice(begin, view.size()));
    rest = Strip(rest.Slice(0, begin), Side::kRight, nullptr);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

}  // namespace

Text ChangeCase(const Context& context, const Text& text, Case to) {
  TextBuilder out(context.budget);
  bool after_cased = false;
  bool first = true;
  text.ForEachRun([&](std::string_view bytes, Origin origin) {
    for (size_t at = 0; at < bytes.size() && !context.budget.exhausted();) {
      const CodePoint c = DecodeAt(bytes, at);
      out.Append(Convert(c.value, to, after_cased, first), origin);
      after_cased = IsCased(c.value);
      first = false;
      at += c.size;
    }
  });
  return out.Take();
}

Text Strip(const Text& text, Side side, const Text* characters) {
  const std::string_view view = text.view();
  const auto strips = [&](size_t at) {
    const CodePoint c = DecodeAt(view, at);
    if (characters == nullptr) return IsSpace(c.value);
    const std::string_view set = characters->view();
    for (size_t i = 0; i < set.size(); i += DecodeAt(set, i).size) {
      if (DecodeAt(set, i).value == c.value) return true;
    }
    return false;
  };
  size_t begin = 0;
  size_t end = view.size();
  if (side != Side::kRight) {
    while (begin < end && strips(begin)) begin += DecodeAt(view, begin).size;
  }
  if (side != Side::kLeft) {
    while (end > begin && strips(PreviousOffset(view, end))) end = PreviousOffset(view, end);
  }
  return text.Slice(begin, end);
}

Text Replace(const Context& context, const Text& text, const Text& old, const Text& with,
             int64_t count) {
  const std::string_view view = text.view();
  TextBuilder out(context.budget);
  size_t at = 0;
  for (int64_t done = 0; (count < 0 || done < count) && context.budget.Spend(1); ++done) {
    const size_t found = FindText(view, old.view(), at);
    if (found == std::string_view::npos) break;
    out.Append(text.Slice(at, found)).Append(with);
    at = found + old.size();
    if (!old.empty()) continue;
    // An empty pattern stands before each character and at the end.
    if (at >= view.size()) break;
    const size_t size = DecodeAt(view, at).size;
    out.Append(text.Slice(at, at + size));
    at += size;
  }
  return out.Append(text.Slice(at, view.size())).Take();
}

std::vector<Value> SplitLines(const Context& context, const Text& text, bool keep_ends) {
  std::vector<Value> lines;
  const std::string_view view = text.view();
  size_t begin = 0;
  for (size_t at = 0; at < view.size();) {
    const CodePoint c = DecodeAt(view, at);
    if (!IsLineBreak(c.value)) {
      at += c.size;
      continue;
    }
    if (!context.budget.Spend(1)) return lines;
    const size_t end = at;
    at += c.size;
    if (c.value == '\r' && at < view.size() && view[at] == '\n') ++at;
    lines.emplace_back(text.Slice(begin, keep_ends ? at : end));
    begin = at;
  }
  if (begin < view.size()) lines.emplace_back(text.Slice(begin, view.size()));
  return lines;
}

std::vector<Value> Split(const Context& context, const Text& text, const Text* separator,
                         int64_t limit) {
  if (separator == nullptr) return SplitAtSpace(context, text, limit);
  std::vector<Value> parts;
  const std::string_view view = text.view();
  size_t at = 0;
  while ((limit < 0 || std::ssize(parts) < limit) && context.budget.Spend(1)) {
    const size_t found = FindText(view, separator->view(), at);
    if (found == std::string_view::npos) break;
    parts.emplace_back(text.Slice(at, found));
    at = found + separator->size();
  }
  parts.emplace_back(text.Slice(at, view.size()));
  return parts;
}

std::vector<Value> SplitFromRight(const Context& context, const Text& text, const Text* separator,
                                  int64_t limit) {
  if (separator == nullptr) return SplitAtSpaceFromRight(context, text, limit);
  std::vector<Value> parts;
  const std::string_view view = text.view();
  size_t end = view.size();
  while ((limit < 0 || std::ssize(parts) < limit) && context.budget.Spend(1)) {
    const size_t found = FindLast(view, separator->view(), end);
    if (found == std::string_view::npos) break;
    parts.emplace_back(text.Slice(found + separator->size(), end));
    end = found;
  }
  parts.emplace_back(text.Slice(0, end));
  std::reverse(parts.begin(), parts.end());
  return parts;
}

}  // namespace polyreme::text::jinja
