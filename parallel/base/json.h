// Strict JSON (RFC 8259): one value type that keeps the order of keys, a parser with limits, a
// writer.
//
// The parser refuses what a public server must refuse: trailing text, duplicate keys, invalid
// UTF-8, lone surrogates, NaN, too deep, too long. Integers beyond int64 become doubles, as
// Python's float() of them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "parallel/base/limits.h"
#include "parallel/base/status.h"

namespace polyreme {

class Json {
 public:
  using Member = std::pair<std::string, Json>;
  using Array = std::vector<Json>;
  // In the order they came; keys are distinct when parsed.
  struct Object {
    std::vector<Member> members;
  };

  Json() = default;  // null
  Json(std::nullptr_t) {}
  Json(bool value) : value_(value) {}
  Json(int value) : value_(int64_t{value}) {}
  Json(int64_t value) : value_(value) {}
  Json(uint64_t) = delete;
  Json(double value) : value_(value) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(std::string_view value) : value_(std::string(value)) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}

  static Json MakeArray() { return Json(Array{}); }
  static Json MakeObject() { return Json(Object{}); }
  // Json::MakeObject({{"a", 1}, {"b", "x"}})
  static Json MakeObject(std::initializer_list<Member> members) { return Json(Object{members}); }

  struct ParseOptions {
    int32_t depth_max = limits::kMaxJsonDepth;
    int64_t bytes_max = limits::kMaxJsonBytes;
    int64_t values_max = limits::kMaxJsonValues;  // of any kind, containers included
  };
  // InvalidArgument with the byte offset and what was expected.
  static absl::StatusOr<Json> Parse(std::string_view text, const ParseOptions& options);
  static absl::StatusOr<Json> Parse(std::string_view text) { return Parse(text, ParseOptions{}); }

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  bool is_int() const { return std::holds_alternative<int64_t>(value_); }
  bool is_double() const { return std::holds_alternative<double>(value_); }
  bool is_number() const { return is_int() || is_double(); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }
  // "null", "a boolean", "an integer", "a number", "a string", "an array", "an object": for
  // messages.
  std::string_view type_name() const;

  // Each CHECKs the type: ask first.
  bool as_bool() const { return std::get<bool>(value_); }
  int64_t as_int() const { return std::get<int64_t>(value_); }
  double as_double() const {
    return is_int() ? static_cast<double>(as_int()) : std::get<double>(value_);
  }
  const std::string& as_string() const { return std::get<std::string>(value_); }
  const Array& as_array() const { return std::get<Array>(value_); }
  Array& as_array() { return std::get<Array>(value_); }
  const std::vector<Member>& members() const { return std::get<Object>(value_).members; }
  std::vector<Member>& members() { return std::get<Object>(value_).members; }

  // The member's value, or nullptr if this is no object or has no such key. Linear in the number of
  // keys.
  const Json* Find(std::string_view key) const;
  // Adds or replaces a member; CHECKs that this is an object. Returns *this for chaining.
  Json& Set(std::string key, Json value);
  // Appends to an array; CHECKs that this is one.
  void Append(Json value) { as_array().push_back(std::move(value)); }

  enum class Style {
    kCompact,  // {"a":1,"b":[2]}
    kPython,   // {"a": 1, "b": [2]}: as Python's json.dumps prints with ensure_ascii=False
  };
  // Never fails: bytes that are no UTF-8 are written as U+FFFD; NaN and infinities as null.
  std::string Dump(Style style = Style::kCompact) const;

  friend bool operator==(const Json& a, const Json& b);

 private:
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> value_;
};

bool operator==(const Json& a, const Json& b);

}  // namespace polyreme
