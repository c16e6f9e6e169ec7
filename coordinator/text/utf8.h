// UTF-8 (RFC 3629): scanning, checking, code points, and the two classes of characters added tokens
// ask about.
//
// Pure functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace polyreme::text {

// U+FFFD, what stands for bytes that are no text.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

enum class Utf8Kind {
  kWellFormed,  // one character
  kIllFormed,   // a maximal subpart of one (Unicode 15, section 3.9): stands for one U+FFFD
  kIncomplete,  // a proper beginning of a character, cut off by the end of the bytes
};

struct Utf8Scan {
  Utf8Kind kind = Utf8Kind::kIncomplete;
  int32_t num_bytes = 0;
};

// What stands at the beginning of `bytes`, which must not be empty.
Utf8Scan ScanUtf8(std::string_view bytes);

// The offset of the first byte that begins no well-formed character, or npos if there is none.
size_t FindInvalidUtf8(std::string_view bytes);

// Appends the characters that begin in `bytes` to `text`, U+FFFD for each maximal subpart of none,
// and returns what may be the beginning of a character that has not all come yet: at most three
// bytes, or nothing.
std::string_view AppendWholeCharacters(std::string_view bytes, std::string& text);

struct CodePoint {
  char32_t value = 0;
  int32_t num_bytes = 0;
};

// The first and the last character of well-formed text that is not empty.
CodePoint FirstCodePoint(std::string_view text);
CodePoint LastCodePoint(std::string_view text);

// Appends the UTF-8 of a Unicode scalar value.
void AppendUtf8(char32_t code_point, std::string& out);

// Unicode's White_Space property: what \s means to the reference's regular expressions.
bool IsWhiteSpace(char32_t code_point);

// What \w means to them: Alphabetic, marks, decimal digits, connectors, joiners.
bool IsWordCharacter(char32_t code_point);

}  // namespace polyreme::text
