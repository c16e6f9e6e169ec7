// A compiled regular expression over UTF-8 (PCRE2), and the memory its matching needs.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "parallel/base/status.h"

namespace polyreme::text {

// A part of a text: bytes [begin, end), and whether the expression matched it or it lies between
// matches.
struct RegexSpan {
  uint32_t begin = 0;
  uint32_t end = 0;
  bool is_match = false;
};

// What one thread needs to match: a stack for compiled code and a place for results. Not shared
// between threads.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class Regex;
  struct Memory;
  std::unique_ptr<Memory> memory_;
};

// Immutable after it is made; any thread, each with a RegexScratch of its own.
class Regex {
 public:
  // Oniguruma's syntax (regex_syntax.h). InvalidArgument if it is not supported or too long.
  static absl::StatusOr<Regex> Compile(std::string_view pattern);
  // Matches exactly this text, which must not be empty.
  static absl::StatusOr<Regex> CompileLiteral(std::string_view text);

  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  ~Regex();

  // Replaces `spans` by matches and what lies between them, in order, covering `text`, which must
  // be well-formed UTF-8 of at most limits::kMaxPromptBytes. Matches may be empty. Look-around sees
  // nothing outside `text`. ResourceExhausted if the expression backtracks beyond PCRE2's limits.
  absl::Status Split(std::string_view text, RegexScratch& scratch,
                     std::vector<RegexSpan>& spans) const;

 private:
  struct Code;
  explicit Regex(std::unique_ptr<Code> code);
  static absl::StatusOr<Regex> CompileWith(std::string_view pattern, uint32_t options);

  std::unique_ptr<Code> code_;
};

}  // namespace polyreme::text
