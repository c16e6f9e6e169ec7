#include "coordinator/text/byte_alphabet.h"

#include <array>

#include "coordinator/text/utf8.h"

namespace polyreme::text {
namespace {

constexpr bool StandsForItself(int32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr int32_t kFirstBorrowed = 0x100;
constexpr int32_t kNumBorrowed = 68;
constexpr int32_t kAlphabetEnd = kFirstBorrowed + kNumBorrowed;

struct Alphabet {
  std::array<uint16_t, 256> character_of_byte{};
  std::array<int16_t, kAlphabetEnd> byte_of_character{};
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  alphabet.byte_of_character.fill(-1);
  int32_t next_borrowed = kFirstBorrowed;
  for (int32_t byte = 0; byte < 256; ++byte) {
    const int32_t character = StandsForItself(byte) ? byte : next_borrowed++;
    alphabet.character_of_byte[byte] = static_cast<uint16_t>(character);
    alphabet.byte_of_character[character] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();
static_assert(kAlphabet.character_of_byte[' '] == 0x120);
static_assert(kAlphabet.character_of_byte[0xAD] == kAlphabetEnd - 1);

}  // namespace

char32_t AlphabetCharacter(uint8_t byte) {
  return kAlphabet.character_of_byte[byte];
}

std::optional<std::string> AlphabetToBytes(std::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  while (!token.empty()) {
    const CodePoint character = FirstCodePoint(token);
    if (character.value >= kAlphabetEnd || kAlphabet.byte_of_character[character.value] < 0)
      return std::nullopt;
    bytes += static_cast<char>(kAlphabet.byte_of_character[character.value]);
    token.remove_prefix(character.num_bytes);
  }
  return bytes;
}

}  // namespace polyreme::text
