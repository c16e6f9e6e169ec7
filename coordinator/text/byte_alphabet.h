// The byte-level alphabet of GPT-2: each byte is written as one printable character, so that a
// vocabulary is text.
//
// Bytes 0x21-0x7E, 0xA1-0xAC and 0xAE-0xFF stand for themselves (as Latin-1 characters), the other
// 68 in order for U+0100 .. U+0143; a space is "Ġ" (U+0120). Source: openai/gpt-2, encoder.py,
// bytes_to_unicode.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace polyreme::text {

// The character that stands for a byte.
char32_t AlphabetCharacter(uint8_t byte);

// The bytes that a token of the vocabulary stands for, or nothing if one of its characters is not
// of the alphabet. `token` must be well-formed UTF-8.
std::optional<std::string> AlphabetToBytes(std::string_view token);

}  // namespace polyreme::text
