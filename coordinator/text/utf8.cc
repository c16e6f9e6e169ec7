#include "coordinator/text/utf8.h"

#include <utf8proc.h>

#include "parallel/base/status.h"

namespace polyreme::text {
namespace {

uint8_t ByteAt(std::string_view bytes, size_t i) {
  return static_cast<uint8_t>(bytes[i]);
}

// What a lead byte promises: how many bytes, and the range of the second (RFC 3629, section 4).
struct Lead {
  int32_t num_bytes = 0;  // 0: no lead byte
  uint8_t second_min = 0x80;
  uint8_t second_max = 0xBF;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {.num_bytes = 1};
  if (byte < 0xC2) return {.num_bytes = 0};
  if (byte < 0xE0) return {.num_bytes = 2};
  if (byte == 0xE0) return {.num_bytes = 3, .second_min = 0xA0};
  if (byte == 0xED) return {.num_bytes = 3, .second_max = 0x9F};
  if (byte < 0xF0) return {.num_bytes = 3};
  if (byte == 0xF0) return {.num_bytes = 4, .second_min = 0x90};
  if (byte < 0xF4) return {.num_bytes = 4};
  if (byte == 0xF4) return {.num_bytes = 4, .second_max = 0x8F};
  return {.num_bytes = 0};
}

}  // namespace

Utf8Scan ScanUtf8(std::string_view bytes) {
  const Lead lead = LeadOf(ByteAt(bytes, 0));
  if (lead.num_bytes == 0) return {Utf8Kind::kIllFormed, 1};
  for (int32_t i = 1; i < lead.num_bytes; ++i) {
    if (static_cast<size_t>(i) == bytes.size()) return {Utf8Kind::kIncomplete, i};
    const uint8_t byte = ByteAt(bytes, i);
    const uint8_t low = i == 1 ? lead.second_min : uint8_t{0x80};
    const uint8_t high = i == 1 ? lead.second_max : uint8_t{0xBF};
    if (byte < low || byte > high) return {Utf8Kind::kIllFormed, i};
  }
  return {Utf8Kind::kWellFormed, lead.num_bytes};
}

size_t FindInvalidUtf8(std::string_view bytes) {
  for (size_t i = 0; i < bytes.size();) {
    if (ByteAt(bytes, i) < 0x80) {
      ++i;
      continue;
    }
    const Utf8Scan scan = ScanUtf8(bytes.substr(i));
    if (scan.kind != Utf8Kind::kWellFormed) return i;
    i += scan.num_bytes;
  }
  return std::string_view::npos;
}

std::string_view AppendWholeCharacters(std::string_view bytes, std::string& text) {
  while (!bytes.empty()) {
    const Utf8Scan scan = ScanUtf8(bytes);
    if (scan.kind == Utf8Kind::kIncomplete) break;
    text += scan.kind == Utf8Kind::kWellFormed ? bytes.substr(0, scan.num_bytes)
                                               : kReplacementCharacter;
    bytes.remove_prefix(scan.num_bytes);
  }
  return bytes;
}

CodePoint FirstCodePoint(std::string_view text) {
  CHECK(!text.empty(), "no character in empty text");
  const uint8_t lead = ByteAt(text, 0);
  const int32_t num_bytes = LeadOf(lead).num_bytes;
  if (num_bytes <= 1) return {lead, 1};
  char32_t value = lead & (0x7F >> num_bytes);
  for (int32_t i = 1; i < num_bytes; ++i) value = (value << 6) | (ByteAt(text, i) & 0x3F);
  return {value, num_bytes};
}

CodePoint LastCodePoint(std::string_view text) {
  CHECK(!text.empty(), "no character in empty text");
  size_t begin = text.size() - 1;
  while (begin > 0 && (ByteAt(text, begin) & 0xC0) == 0x80) --begin;
  return FirstCodePoint(text.substr(begin));
}

void AppendUtf8(char32_t code_point, std::string& out) {
  utf8proc_uint8_t bytes[4];
  const utf8proc_ssize_t size =
      utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes);
  CHECK(size > 0, "U+{:X} is no Unicode scalar value", static_cast<uint32_t>(code_point));
  out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(size));
}

bool IsWhiteSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool IsWordCharacter(char32_t c) {
  // Symbols that are Alphabetic: circled and squared Latin letters.
  if ((c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
      (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189) || c == 0x200C ||
      c == 0x200D) {
    return true;
  }
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

}  // namespace polyreme::text
