#include "coordinator/text/utf8.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "coordinator/text/byte_alphabet.h"

namespace polyreme::text {
namespace {

// Every scalar value is well-formed, and cutting or changing its bytes is seen.
TEST(Utf8, KnowsEachScalarValueAndItsBeginnings) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c == 0xD800) c = 0xE000;
    std::string text;
    AppendUtf8(c, text);
    const Utf8Scan scan = ScanUtf8(text);
    ASSERT_EQ(scan.kind, Utf8Kind::kWellFormed) << static_cast<uint32_t>(c);
    ASSERT_EQ(scan.num_bytes, std::ssize(text));
    ASSERT_EQ(FirstCodePoint(text).value, c);
    ASSERT_EQ(LastCodePoint("é" + text).value, c);
    for (size_t size = 1; size < text.size(); ++size) {
      ASSERT_EQ(ScanUtf8(text.substr(0, size)).kind, Utf8Kind::kIncomplete);
    }
  }
}

TEST(Utf8, ReplacesMaximalSubpartsAsUnicodeAdvises) {
  const struct {
    std::string bytes, text, rest;
  } kCases[] = {
      {"a\xC0\xAF"
       "b",
       "a\uFFFD\uFFFDb", ""},                      // overlong
      {"\xE0\x80\xBF", "\uFFFD\uFFFD\uFFFD", ""},  // overlong
      {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD", ""},  // a surrogate
      {"\xF4\x91\x92\x93\xFF"
       "A",
       "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA", ""},  // beyond U+10FFFF
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
       "A",
       "\uFFFD\uFFFD\uFFFD\uFFFDA", ""},  // Unicode 15, table 3-11
      {"\x80\xBF", "\uFFFD\uFFFD", ""},
      {"x\xF0\x9F\x98", "x", "\xF0\x9F\x98"},
      {"x\xF0", "x", "\xF0"},
      {"", "", ""},
  };
  for (const auto& [bytes, expected, expected_rest] : kCases) {
    std::string text;
    EXPECT_EQ(AppendWholeCharacters(bytes, text), expected_rest);
    EXPECT_EQ(text, expected);
  }
}

TEST(Utf8, FindsTheFirstInvalidByte) {
  EXPECT_EQ(FindInvalidUtf8("plain é 😀"), std::string_view::npos);
  EXPECT_EQ(FindInvalidUtf8("é\xFF"), 2u);
  EXPECT_EQ(FindInvalidUtf8("ab\xE2\x82"), 2u);
}

TEST(ByteAlphabet, GivesEachByteACharacterAndBack) {
  std::string all_characters, all_bytes;
  for (int byte = 0; byte < 256; ++byte) {
    AppendUtf8(AlphabetCharacter(static_cast<uint8_t>(byte)), all_characters);
    all_bytes += static_cast<char>(byte);
  }
  EXPECT_EQ(AlphabetToBytes(all_characters), all_bytes);
  EXPECT_EQ(AlphabetToBytes("ĠĊ"), " \n");
  EXPECT_EQ(AlphabetToBytes("a b"), std::nullopt);  // a space is written as Ġ
  EXPECT_EQ(AlphabetToBytes("<｜x｜>"), std::nullopt);
}

}  // namespace
}  // namespace polyreme::text
