#include "coordinator/text/regex_syntax.h"

#include <algorithm>
#include <array>

namespace polyreme::text {
namespace {

// Members of White_Space and of its complement, for the inside of a set. PCRE2's own \s also takes
// U+180E.
constexpr std::string_view kSpace =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kNotSpace =
    R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027})"
    R"(\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";

constexpr std::array<std::string_view, 8> kGroups = {
    "(?:", "(?i:", "(?i)", "(?=", "(?!", "(?<=", "(?<!", "(?>"};

bool IsAsciiLetterOrDigit(char c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

bool IsHexDigit(char c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F') || (c >= 'a' && c <= 'f');
}

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Translate() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        RETURN_IF_ERROR(Escape());
      } else if (is_in_set_) {
        RETURN_IF_ERROR(SetCharacter(c));
      } else if (c == '[') {
        RETURN_IF_ERROR(OpenSet());
      } else if (c == '(') {
        RETURN_IF_ERROR(OpenGroup());
      } else if (c == '{') {
        RETURN_IF_ERROR(Repeat());
      } else {
        Copy(1);
      }
    }
    if (is_in_set_) return Refuse("a set without ]");
    return std::move(out_);
  }

 private:
  absl::Status Refuse(std::string_view what) const {
    return InvalidArgument("regular expression \"{}\", byte {}: {} is not supported", pattern_, at_,
                           what);
  }
  std::string_view Rest() const { return pattern_.substr(at_); }
  void Copy(size_t count) {
    out_ += Rest().substr(0, count);
    at_ += count;
  }
  void Replace(size_t count, std::string_view by) {
    out_ += by;
    at_ += count;
  }

  absl::Status OpenSet() {
    const size_t inside = Rest().starts_with("[^") ? 2 : 1;
    if (Rest().substr(inside).starts_with("]")) return Refuse("a set that begins with ]");
    is_in_set_ = true;
    Copy(inside);
    return absl::OkStatus();
  }

  absl::Status SetCharacter(char c) {
    if (c == '[') return Refuse("a set within a set");
    if (Rest().starts_with("&&")) return Refuse("an intersection of sets");
    if (c == ']') is_in_set_ = false;
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status OpenGroup() {
    if (Rest().starts_with("(*")) return Refuse("(*");
    if (!Rest().starts_with("(?")) {
      Copy(1);
      return absl::OkStatus();
    }
    for (const std::string_view group : kGroups) {
      if (Rest().starts_with(group)) {
        Copy(group.size());
        return absl::OkStatus();
      }
    }
    return Refuse(Rest().substr(0, 3));
  }

  // {n}, {n,} and {n,m} mean the same in both; {,m}, {n}? and a + behind do not.
  absl::Status Repeat() {
    const size_t close = Rest().find('}');
    if (close == std::string_view::npos) return Refuse("{ without }");
    const std::string_view inside = Rest().substr(1, close - 1);
    const std::string_view behind = Rest().substr(close + 1);
    const bool is_range = inside.find(',') != std::string_view::npos;
    const bool is_known = !inside.empty() && inside[0] >= '0' && inside[0] <= '9' &&
                          std::all_of(inside.begin(), inside.end(),
                                      [](char c) { return (c >= '0' && c <= '9') || c == ','; });
    if (!is_known || behind.starts_with("+") || (behind.starts_with("?") && !is_range)) {
      return Refuse(Rest().substr(0, close + 2));
    }
    Copy(close + 1);
    return absl::OkStatus();
  }

  absl::Status Escape() {
    if (Rest().size() < 2) return Refuse("a backslash at the end");
    const char c = Rest()[1];
    if (!IsAsciiLetterOrDigit(c)) {
      Copy(1);  // the backslash; what follows may be longer than a byte
      return CopyCharacter();
    }
    switch (c) {
      case 's':
        Replace(2, is_in_set_ ? std::string(kSpace) : fmt::format("[{}]", kSpace));
        return absl::OkStatus();
      case 'S':
        Replace(2, is_in_set_ ? std::string(kNotSpace) : fmt::format("[^{}]", kSpace));
        return absl::OkStatus();
      case 'v':
        Replace(2, R"(\x{b})");
        return absl::OkStatus();
      case 'u':
        return FourDigits();
      case 'p':
      case 'P':
      case 'x':
        return Braces();
      case 'd':
      case 'D':
      case 'r':
      case 'n':
      case 't':
      case 'f':
      case 'a':
      case 'e':
        Copy(2);
        return absl::OkStatus();
      default:
        return Refuse(Rest().substr(0, 2));
    }
  }

  absl::Status CopyCharacter() {
    do {
      Copy(1);
    } while (at_ < pattern_.size() && (static_cast<uint8_t>(pattern_[at_]) & 0xC0) == 0x80);
    return absl::OkStatus();
  }

  absl::Status FourDigits() {
    const std::string_view digits = Rest().substr(2, 4);
    if (digits.size() < 4 || !std::all_of(digits.begin(), digits.end(), IsHexDigit)) {
      return Refuse(Rest().substr(0, 6));
    }
    Replace(6, fmt::format(R"(\x{{{}}})", digits));
    return absl::OkStatus();
  }

  // \p{L}, \P{L}, \x{41}: what is in the braces is for PCRE2 to know or refuse.
  absl::Status Braces() {
    const size_t close = Rest().find('}');
    if (!Rest().substr(2).starts_with("{") || close == std::string_view::npos)
      return Refuse(Rest().substr(0, 3));
    Copy(close + 1);
    return absl::OkStatus();
  }

  std::string_view pattern_;
  std::string out_;
  size_t at_ = 0;
  bool is_in_set_ = false;
};

}  // namespace

absl::StatusOr<std::string> TranslateRegex(std::string_view pattern) {
  return Translator(pattern).Translate();
}

}  // namespace polyreme::text
