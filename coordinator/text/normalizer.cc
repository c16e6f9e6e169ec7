#include "coordinator/text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <utility>

#include "coordinator/text/json_fields.h"
#include "coordinator/text/utf8.h"

namespace polyreme::text {
namespace {

constexpr int32_t kMaxDepth = 8;
constexpr int32_t kMaxForms = 16;
constexpr int32_t kMaxDecomposed = 32;  // the longest is 18 (U+FDFA in the compatibility forms)

int32_t CombiningClass(utf8proc_int32_t c) {
  return utf8proc_get_property(c)->combining_class;
}

// Canonical order: marks of one base by combining class. utf8proc's own sort takes quadratic time
// on long runs of marks, which anyone may send, so it is done here.
void SortMarks(std::vector<utf8proc_int32_t>& characters) {
  const auto is_mark = [](utf8proc_int32_t c) { return CombiningClass(c) != 0; };
  const auto by_class = [](utf8proc_int32_t a, utf8proc_int32_t b) {
    return CombiningClass(a) < CombiningClass(b);
  };
  for (auto begin = characters.begin(); begin != characters.end();) {
    begin = std::find_if(begin, characters.end(), is_mark);
    const auto end = std::find_if_not(begin, characters.end(), is_mark);
    std::stable_sort(begin, end, by_class);
    begin = end;
  }
}

std::string NormalizeChunk(std::string_view text, bool is_compatible, bool composes) {
  const int decompose =
      UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (is_compatible ? UTF8PROC_COMPAT : 0);
  std::vector<utf8proc_int32_t> characters;
  characters.reserve(text.size() / 2);
  while (!text.empty()) {
    const CodePoint c = FirstCodePoint(text);
    text.remove_prefix(c.num_bytes);
    std::array<utf8proc_int32_t, kMaxDecomposed> parts;
    int boundary = 0;
    const utf8proc_ssize_t count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c.value), parts.data(), parts.size(),
                                static_cast<utf8proc_option_t>(decompose), &boundary);
    CHECK(count >= 0 && count <= kMaxDecomposed, "U+{:X} decomposes into {}",
          static_cast<uint32_t>(c.value), count);
    characters.insert(characters.end(), parts.begin(), parts.begin() + count);
  }
  SortMarks(characters);
  if (composes) {
    const utf8proc_ssize_t count = utf8proc_normalize_utf32(
        characters.data(), std::ssize(characters),
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    CHECK(count >= 0, "utf8proc: {}", utf8proc_errmsg(count));
    characters.resize(count);
  }
  std::string out;
  for (const utf8proc_int32_t c : characters) AppendUtf8(static_cast<char32_t>(c), out);
  return out;
}

bool IsAscii(char c) {
  return static_cast<uint8_t>(c) < 0x80;
}

}  // namespace

absl::StatusOr<Normalizer> Normalizer::Make(const Json* json, const std::string& path) {
  Normalizer normalizer;
  if (json != nullptr) RETURN_IF_ERROR(normalizer.Read(*json, path, 0));
  return normalizer;
}

absl::Status Normalizer::Read(const Json& json, const std::string& path, int32_t depth) {
  constexpr std::array<std::pair<std::string_view, Form>, 4> kForms = {
      {{"NFC", Form::kNfc}, {"NFD", Form::kNfd}, {"NFKC", Form::kNfkc}, {"NFKD", Form::kNfkd}}};
  if (depth > kMaxDepth || std::ssize(forms_) > kMaxForms)
    return InvalidArgument("{}: too many normalizers", path);
  ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(json, path));
  ASSIGN_OR_RETURN(const std::string type, fields.String("type"));
  if (type == "Sequence") {
    RETURN_IF_ERROR(fields.AllowOnly({"type", "normalizers"}));
    ASSIGN_OR_RETURN(const Json::Array* parts, fields.Array("normalizers"));
    for (size_t i = 0; i < parts->size(); ++i) {
      RETURN_IF_ERROR(Read((*parts)[i], fields.PathTo("normalizers", i), depth + 1));
    }
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(fields.AllowOnly({"type"}));
  for (const auto& [name, form] : kForms) {
    if (type == name) {
      forms_.push_back(form);
      return absl::OkStatus();
    }
  }
  return InvalidArgument(
      "{}: normalizer \"{}\" is not supported (known: NFC, NFD, NFKC, NFKD, Sequence)", path, type);
}

RunText Normalizer::Normalize(RunText text) const {
  for (const Form form : forms_) text = Apply(form, text);
  return text;
}

// An ASCII character is left alone by each form and never joins what stands before it, so the text
// may be cut in front of each, and each chunk be normalised by itself.
RunText Normalizer::Apply(Form form, const RunText& text) {
  const std::string_view all = text.text;
  const bool is_compatible = form == Form::kNfkc || form == Form::kNfkd;
  const bool composes = form == Form::kNfc || form == Form::kNfkc;
  RunText out;
  out.text.reserve(all.size());
  auto run = text.runs.begin();
  for (size_t begin = 0; begin < all.size();) {
    while (run->end <= begin) ++run;
    size_t end = begin + 1;
    while (end < all.size() && !IsAscii(all[end])) ++end;
    const std::string_view chunk = all.substr(begin, end - begin);
    if (chunk.size() == 1) {
      out.Append(chunk, run->kind);
    } else {
      const std::string normal = NormalizeChunk(chunk, is_compatible, composes);
      if (normal == chunk) {
        const RunText same = text.Slice(begin, end);
        for (size_t i = 0, from = 0; i < same.runs.size(); from = same.runs[i++].end) {
          out.Append(chunk.substr(from, same.runs[i].end - from), same.runs[i].kind);
        }
      } else {
        out.Append(normal, run->end >= end ? run->kind : TextKind::kContent);
      }
    }
    begin = end;
  }
  return out;
}

}  // namespace polyreme::text
