#include "coordinator/text/jinja_lexer.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "coordinator/text/jinja_text.h"

namespace polyreme::text::jinja {
namespace {

bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}
bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
bool IsNamePart(char c) {
  return IsNameStart(c) || IsDigit(c);
}

// \r\n and \r become \n, and one newline at the very end is dropped.
std::string NormalizeNewlines(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      text += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      text += source[i];
    }
  }
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

size_t SpaceAt(std::string_view text, size_t at) {
  const CodePoint c = DecodeAt(text, at);
  return c.size > 0 && IsSpace(c.value) ? c.size : 0;
}

bool AllSpace(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t size = SpaceAt(text, at);
    if (size == 0) return false;
    at += size;
  }
  return true;
}

void StripRight(std::string& text) {
  size_t end = 0;
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = DecodeAt(text, at);
    at += c.size;
    if (!IsSpace(c.value)) end = at;
  }
  text.resize(end);
}

class Lexer {
 public:
  explicit Lexer(std::string source) : owned_(std::move(source)), source_(owned_) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) RETURN_IF_ERROR(Segment());
    Add(Token::Kind::kEnd, "end of template");
    return std::move(tokens_);
  }

 private:
  // Data up to the next tag, then the tag.
  absl::Status Segment() {
    size_t tag = at_;
    while (tag + 1 < source_.size() &&
           !(source_[tag] == '{' && std::string_view("{%#").find(source_[tag + 1]) != npos)) {
      ++tag;
    }
    if (tag + 1 >= source_.size()) {
      AddData(std::string(source_.substr(at_)));
      Advance(source_.size());
      return absl::OkStatus();
    }
    const char type = source_[tag + 1];
    size_t inside = tag + 2;
    char sign = 0;
    if (inside < source_.size() && (source_[inside] == '-' || source_[inside] == '+')) {
      sign = source_[inside++];
    }
    AddData(StripBeforeTag(std::string(source_.substr(at_, tag - at_)), sign, type));
    Advance(inside);
    if (type == '#') return Comment();
    if (type == '%') {
      size_t end = 0;
      if (KeywordTag(inside, "raw", end)) return Raw(end);
    }
    return Tag(type);
  }

  // A tag that starts its line takes the blanks before it away; `-` takes all white space, `+`
  // none.
  std::string StripBeforeTag(std::string data, char sign, char type) const {
    if (sign == '-') {
      StripRight(data);
    } else if (sign != '+' && type != '{') {
      const size_t newline = data.rfind('\n');
      const size_t line = newline == npos ? 0 : newline + 1;
      if ((line > 0 || line_starts_) && AllSpace(std::string_view(data).substr(line))) {
        data.resize(line);
      }
    }
    return data;
  }

  absl::Status Comment() {
    const int line = line_;
    const size_t close = source_.find("#}", at_);
    if (close == npos) return InvalidArgument("line {}: expected '#}}' to close a comment", line);
    const char sign = close > at_ ? source_[close - 1] : '\0';
    CloseBlock(close + 2, sign);
    return absl::OkStatus();
  }

  // {% raw %}: data up to {% endraw %}, whatever it contains.
  absl::Status Raw(size_t begin) {
    const int line = line_;
    if (source_[begin - 3] == '-') begin = SkipSpace(begin);
    Advance(begin);
    for (size_t tag = source_.find("{%", at_); tag != npos; tag = source_.find("{%", tag + 2)) {
      size_t inside = tag + 2;
      char sign = 0;
      if (inside < source_.size() && (source_[inside] == '-' || source_[inside] == '+')) {
        sign = source_[inside++];
      }
      size_t end = 0;
      if (!KeywordTag(inside, "endraw", end)) continue;
      AddData(StripBeforeTag(std::string(source_.substr(at_, tag - at_)), sign, '%'));
      CloseBlock(end, source_[end - 3]);
      return absl::OkStatus();
    }
    return InvalidArgument("line {}: expected '{{% endraw %}}' to close a raw block", line);
  }

  // Whether `keyword %}` stands at `from`; `end` is then the offset behind it.
  bool KeywordTag(size_t from, std::string_view keyword, size_t& end) const {
    size_t at = SkipSpace(from);
    if (source_.substr(at, keyword.size()) != keyword) return false;
    at = SkipSpace(at + keyword.size());
    if (at < source_.size() && (source_[at] == '-' || source_[at] == '+')) ++at;
    if (source_.substr(at, 2) != "%}") return false;
    end = at + 2;
    return true;
  }

  // Behind a block tag or comment: `-` eats all white space, `+` nothing, else one newline goes.
  void CloseBlock(size_t end, char sign) {
    if (sign == '-') {
      end = SkipSpace(end);
    } else if (sign != '+' && end < source_.size() && source_[end] == '\n') {
      ++end;
    }
    Advance(end);
  }

  absl::Status Tag(char type) {
    const bool output = type == '{';
    const int opened = line_;
    const std::string_view close = output ? "}}" : "%}";
    Add(output ? Token::Kind::kOutputBegin : Token::Kind::kBlockBegin, output ? "{{" : "{%");
    std::string brackets;
    while (true) {
      Advance(SkipSpace(at_));
      if (at_ >= source_.size()) {
        return InvalidArgument("line {}: expected '{}' to close the tag", opened, close);
      }
      const char sign = source_[at_];
      const bool signed_close =
          (sign == '-' || (sign == '+' && !output)) && source_.substr(at_ + 1, 2) == close;
      if (brackets.empty() && (signed_close || source_.substr(at_, 2) == close)) {
        Add(output ? Token::Kind::kOutputEnd : Token::Kind::kBlockEnd, close);
        const size_t end = at_ + (signed_close ? 3 : 2);
        if (output) {
          Advance(signed_close ? SkipSpace(end) : end);
        } else {
          CloseBlock(end, signed_close ? sign : '\0');
        }
        return absl::OkStatus();
      }
      RETURN_IF_ERROR(One(brackets));
    }
  }

  absl::Status One(std::string& brackets) {
    const char c = source_[at_];
    if (IsDigit(c)) return Number();
    if (c == '\'' || c == '"') return String(c);
    if (IsNameStart(c)) {
      size_t end = at_;
      while (end < source_.size() && IsNamePart(source_[end])) ++end;
      Add(Token::Kind::kName, source_.substr(at_, end - at_));
      Advance(end);
      return absl::OkStatus();
    }
    constexpr std::string_view kLong[] = {"**", "//", "==", "!=", "<=", ">="};
    size_t size = 1;
    for (const std::string_view candidate : kLong) {
      if (source_.substr(at_, 2) == candidate) size = 2;
    }
    if (size == 1 && std::string_view("+-*/%~()[]{}<>=.,:|").find(c) == npos) {
      const CodePoint odd = DecodeAt(source_, at_);
      return InvalidArgument("line {}: unexpected character '{}'", line_,
                             source_.substr(at_, odd.size));
    }
    if (c == '(' || c == '[' || c == '{') brackets += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      if (brackets.empty() || brackets.back() != c) {
        return InvalidArgument("line {}: unexpected '{}'", line_, c);
      }
      brackets.pop_back();
    }
    Add(Token::Kind::kPunctuation, source_.substr(at_, size));
    Advance(at_ + size);
    return absl::OkStatus();
  }

  size_t DigitsFrom(size_t at) const {
    while (at < source_.size() &&
           (IsDigit(source_[at]) ||
            (source_[at] == '_' && at + 1 < source_.size() && IsDigit(source_[at + 1])))) {
      ++at;
    }
    return at;
  }

  absl::Status Number() {
    size_t end = DigitsFrom(at_);
    bool is_float = false;
    const auto digit_at = [&](size_t at) { return at < source_.size() && IsDigit(source_[at]); };
    if (end < source_.size() && source_[end] == '.' && digit_at(end + 1)) {
      is_float = true;
      end = DigitsFrom(end + 1);
    }
    if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      const bool sign =
          end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-');
      if (digit_at(end + 1 + sign)) {
        is_float = true;
        end = DigitsFrom(end + 1 + sign);
      }
    }
    std::string digits(source_.substr(at_, end - at_));
    std::erase(digits, '_');
    if (end < source_.size() && IsNamePart(source_[end])) {
      return InvalidArgument("line {}: unexpected '{}' in number {}", line_, source_[end], digits);
    }
    Token token{is_float ? Token::Kind::kFloat : Token::Kind::kInteger, line_, digits};
    if (is_float) {
      token.number = std::strtod(digits.c_str(), nullptr);
    } else {
      const auto [stop, error] =
          std::from_chars(digits.data(), digits.data() + digits.size(), token.integer);
      if (error != std::errc()) {
        return InvalidArgument("line {}: number {} does not fit 64 bits", line_, digits);
      }
    }
    tokens_.push_back(std::move(token));
    Advance(end);
    return absl::OkStatus();
  }

  absl::Status String(char quote) {
    const int line = line_;
    std::string value;
    size_t at = at_ + 1;
    for (; at < source_.size() && source_[at] != quote;) {
      if (source_[at] != '\\') {
        value += source_[at++];
        continue;
      }
      RETURN_IF_ERROR(Escape(++at, value));
    }
    if (at >= source_.size()) return InvalidArgument("line {}: string without its end", line);
    Add(Token::Kind::kString, value);
    Advance(at + 1);
    return absl::OkStatus();
  }

  // The escape behind a backslash at `at`, as in Python; moves `at` behind it.
  absl::Status Escape(size_t& at, std::string& value) {
    if (at >= source_.size()) return absl::OkStatus();
    const char c = source_[at++];
    constexpr std::string_view kFrom = "\\'\"abfnrtv";
    constexpr std::string_view kTo = "\\'\"\a\b\f\n\r\t\v";
    if (const size_t known = kFrom.find(c); known != npos) {
      value += kTo[known];
    } else if (c == 'x') {
      return CodePointEscape(at, 2, 16, value);
    } else if (c == 'u') {
      return CodePointEscape(at, 4, 16, value);
    } else if (c == 'U') {
      return CodePointEscape(at, 8, 16, value);
    } else if (c >= '0' && c <= '7') {
      size_t digits = 1;
      --at;
      while (digits < 3 && at + digits < source_.size() && source_[at + digits] >= '0' &&
             source_[at + digits] <= '7') {
        ++digits;
      }
      return CodePointEscape(at, digits, 8, value);
    } else if (c == 'N') {
      return InvalidArgument("line {}: the escape \\N is not supported", line_);
    } else if (c != '\n') {  // an escaped newline vanishes
      value += '\\';
      value += c;
    }
    return absl::OkStatus();
  }

  absl::Status CodePointEscape(size_t& at, size_t digits, int base, std::string& value) {
    uint32_t code = 0;
    const std::string_view text = source_.substr(at, digits);
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), code, base);
    if (error != std::errc() || stop != text.data() + digits || code > 0x10FFFF ||
        (code >= 0xD800 && code < 0xE000)) {
      return InvalidArgument("line {}: expected a character code of {} digits, got '{}'", line_,
                             digits, text);
    }
    value += EncodeUtf8(code);
    at += digits;
    return absl::OkStatus();
  }

  size_t SkipSpace(size_t at) const {
    for (size_t size = SpaceAt(source_, at); size > 0; size = SpaceAt(source_, at)) at += size;
    return at;
  }

  void AddData(std::string data) {
    if (!data.empty()) Add(Token::Kind::kData, data);
  }
  void Add(Token::Kind kind, std::string_view text) {
    tokens_.push_back({kind, line_, std::string(text)});
  }
  void Advance(size_t to) {
    if (to == at_) return;
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    line_starts_ = source_[to - 1] == '\n';
    at_ = to;
  }

  static constexpr size_t npos = std::string_view::npos;

  std::string owned_;
  std::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starts_ = true;  // what was read last ends a line
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) {
  return Lexer(NormalizeNewlines(source)).Run();
}

}  // namespace polyreme::text::jinja
