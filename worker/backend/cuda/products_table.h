// Which algorithm serves which product, as a file keeps it: one per GPU, driver and library, so
// that the next start neither times nor chooses differently. Header only and without CUDA, so that
// it is tested where there is none.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "parallel/base/json.h"
#include "parallel/base/status.h"
#include "parallel/tensor/tensor.h"

namespace polyreme::cuda {

// Numbers of rows that are timed; T is served as the first that is not below it, beyond the last
// as the last.
inline constexpr std::array<int64_t, 20> kRowBuckets = {
    1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192, 16384};

inline size_t BucketOf(int64_t rows) {
  size_t bucket = 0;
  while (bucket + 1 < kRowBuckets.size() && kRowBuckets[bucket] < rows) ++bucket;
  return bucket;
}

struct ProductKey {
  DType type = DType::kBF16;  // of x and w
  DType out = DType::kBF16;
  int64_t n = 0;
  int64_t k = 0;
  int64_t bucket_rows = 0;  // one of kRowBuckets
  auto Tie() const { return std::tie(type, out, n, k, bucket_rows); }
  friend bool operator<(const ProductKey& a, const ProductKey& b) { return a.Tie() < b.Tie(); }
};

struct ProductChoice {
  enum class Kind : uint8_t { kPlain, kGemv, kCublas };
  Kind kind = Kind::kPlain;
  int32_t variant = 0;                     // kGemv
  std::array<uint64_t, 8> algorithm = {};  // kCublas: the library's opaque bytes
  double microseconds = 0;                 // as timed, for readers
};

using ProductTable = std::map<ProductKey, ProductChoice>;

namespace products_table_internal {

inline constexpr int64_t kFormat = 1;
inline constexpr std::array<std::string_view, 3> kKinds = {"plain", "gemv", "cublaslt"};

inline std::string ToHex(const std::array<uint64_t, 8>& words) {
  std::string hex;
  for (const uint64_t word : words) hex += fmt::format("{:016x}", word);
  return hex;
}

inline std::optional<std::array<uint64_t, 8>> FromHex(std::string_view hex) {
  std::array<uint64_t, 8> words = {};
  if (hex.size() != words.size() * 16) return std::nullopt;
  for (size_t i = 0; i < hex.size(); ++i) {
    const char c = hex[i];
    const bool digit = c >= '0' && c <= '9';
    if (!digit && (c < 'a' || c > 'f')) return std::nullopt;
    words[i / 16] = words[i / 16] << 4 | static_cast<uint64_t>(digit ? c - '0' : c - 'a' + 10);
  }
  return words;
}

inline std::optional<int64_t> IntAt(const Json& object, std::string_view key) {
  const Json* value = object.Find(key);
  if (value == nullptr || !value->is_int()) return std::nullopt;
  return value->as_int();
}
inline std::string TextAt(const Json& object, std::string_view key) {
  const Json* value = object.Find(key);
  return value != nullptr && value->is_string() ? value->as_string() : std::string();
}

inline std::optional<ProductKey> KeyOf(const Json& entry) {
  const absl::StatusOr<DType> type = ParseDType(TextAt(entry, "type"));
  const absl::StatusOr<DType> out = ParseDType(TextAt(entry, "out"));
  const std::optional<int64_t> n = IntAt(entry, "n");
  const std::optional<int64_t> k = IntAt(entry, "k");
  const std::optional<int64_t> rows = IntAt(entry, "rows");
  if (!type.ok() || !out.ok() || !n || !k || !rows) return std::nullopt;
  if (kRowBuckets[BucketOf(*rows)] != *rows) return std::nullopt;
  return ProductKey{*type, *out, *n, *k, *rows};
}

inline std::optional<ProductChoice> ChoiceOf(const Json& entry) {
  ProductChoice choice;
  const std::string kind = TextAt(entry, "kind");
  if (const Json* time = entry.Find("microseconds"); time != nullptr && time->is_number()) {
    choice.microseconds = time->as_double();
  }
  if (kind == kKinds[1]) {
    const std::optional<int64_t> variant = IntAt(entry, "variant");
    if (!variant || *variant < 0 || *variant > 1000) return std::nullopt;
    choice.kind = ProductChoice::Kind::kGemv;
    choice.variant = static_cast<int32_t>(*variant);
    return choice;
  }
  if (kind == kKinds[2]) {
    const auto words = FromHex(TextAt(entry, "algorithm"));
    if (!words) return std::nullopt;
    choice.kind = ProductChoice::Kind::kCublas;
    choice.algorithm = *words;
    return choice;
  }
  if (kind != kKinds[0]) return std::nullopt;
  return choice;
}

}  // namespace products_table_internal

// identity: GPU, driver and library that the choices hold for.
inline std::string ToText(const ProductTable& table, const std::string& identity) {
  namespace internal = products_table_internal;
  Json entries = Json::MakeArray();
  for (const auto& [key, choice] : table) {
    Json entry = Json::MakeObject({{"type", std::string(NameOf(key.type))},
                                   {"out", std::string(NameOf(key.out))},
                                   {"n", key.n},
                                   {"k", key.k},
                                   {"rows", key.bucket_rows}});
    entry.Set("kind", std::string(internal::kKinds[static_cast<size_t>(choice.kind)]));
    if (choice.kind == ProductChoice::Kind::kGemv) entry.Set("variant", int64_t{choice.variant});
    if (choice.kind == ProductChoice::Kind::kCublas) {
      entry.Set("algorithm", internal::ToHex(choice.algorithm));
    }
    entry.Set("microseconds", choice.microseconds);
    entries.Append(std::move(entry));
  }
  return Json::MakeObject({{"format", internal::kFormat},
                           {"identity", identity},
                           {"products", std::move(entries)}})
             .Dump() +
         "\n";
}

// The choices of a file's text. InvalidArgument: no such file of ours, or of another GPU, driver
// or library. Entries that make no sense are left out.
inline absl::StatusOr<ProductTable> ParseProductTable(std::string_view text,
                                                      const std::string& identity) {
  namespace internal = products_table_internal;
  ASSIGN_OR_RETURN(const Json file, Json::Parse(text));
  if (internal::IntAt(file, "format") != internal::kFormat) {
    return InvalidArgument("expected a table of products of format {}", internal::kFormat);
  }
  if (const std::string found = internal::TextAt(file, "identity"); found != identity) {
    return InvalidArgument("expected a table of products for '{}', got one for '{}'", identity,
                           found);
  }
  const Json* entries = file.Find("products");
  if (entries == nullptr || !entries->is_array()) {
    return InvalidArgument("a table of products without its list");
  }
  ProductTable table;
  for (const Json& entry : entries->as_array()) {
    const std::optional<ProductKey> key = internal::KeyOf(entry);
    const std::optional<ProductChoice> choice = internal::ChoiceOf(entry);
    if (key && choice) table[*key] = *choice;
  }
  return table;
}

}  // namespace polyreme::cuda
