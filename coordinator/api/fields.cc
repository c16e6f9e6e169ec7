#include "coordinator/api/fields.h"

#include <cmath>
#include <limits>

namespace polyreme::api {
namespace {

constexpr size_t kMaxShownBytes = 60;

// Whole numbers may come as 5 or 5.0, as Python's and JavaScript's clients write them.
std::optional<int64_t> ToInteger(const Json& value) {
  if (value.is_int()) return value.as_int();
  if (!value.is_double()) return std::nullopt;
  const double number = value.as_double();
  constexpr double kExact = 9007199254740992.0;  // 2^53: beyond, a double does not name one integer
  if (!(std::abs(number) <= kExact) || number != std::floor(number)) return std::nullopt;
  return static_cast<int64_t>(number);
}

std::optional<int32_t> ToInt32(const Json& value) {
  const std::optional<int64_t> number = ToInteger(value);
  if (!number.has_value() || *number < std::numeric_limits<int32_t>::min() ||
      *number > std::numeric_limits<int32_t>::max()) {
    return std::nullopt;
  }
  return static_cast<int32_t>(*number);
}

// Cuts only between characters, so that the message stays UTF-8.
std::string Shorten(std::string text) {
  if (text.size() <= kMaxShownBytes) return text;
  size_t end = kMaxShownBytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  text.resize(end);
  return text + "...";
}

}  // namespace

absl::Status WrongValue(std::string_view field, std::string_view expected, const Json& got) {
  const std::string shown = got.is_array() || got.is_object() || got.is_null()
                                ? std::string(got.type_name())
                                : Shorten(got.Dump());
  return InvalidArgument("{}: expected {}, got {}", field, expected, shown);
}

absl::StatusOr<Fields> Fields::Of(const Json& value, std::string_view name) {
  if (!value.is_object()) return WrongValue(name.empty() ? "body" : name, "an object", value);
  return Fields(value, name);
}

const Json* Fields::Find(std::string_view field) const {
  const Json* value = object_->Find(field);
  return value == nullptr || value->is_null() ? nullptr : value;
}

std::string Fields::PathTo(std::string_view field) const {
  return name_.empty() ? std::string(field) : fmt::format("{}.{}", name_, field);
}

absl::Status Fields::Read(std::string_view field, bool& out) const {
  const Json* value = Find(field);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_bool()) return WrongValue(PathTo(field), "true or false", *value);
  out = value->as_bool();
  return absl::OkStatus();
}

absl::Status Fields::Read(std::string_view field, int32_t& out) const {
  const Json* value = Find(field);
  if (value == nullptr) return absl::OkStatus();
  const std::optional<int32_t> number = ToInt32(*value);
  if (!number.has_value()) return WrongValue(PathTo(field), "an integer of 32 bits", *value);
  out = *number;
  return absl::OkStatus();
}

absl::Status Fields::Read(std::string_view field, double& out) const {
  const Json* value = Find(field);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_number()) return WrongValue(PathTo(field), "a number", *value);
  out = value->as_double();
  return absl::OkStatus();
}

absl::Status Fields::Read(std::string_view field, std::string& out) const {
  const Json* value = Find(field);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_string()) return WrongValue(PathTo(field), "a string", *value);
  out = value->as_string();
  return absl::OkStatus();
}

absl::Status Fields::Read(std::string_view field, std::optional<uint64_t>& out) const {
  const Json* value = Find(field);
  if (value == nullptr) return absl::OkStatus();
  const std::optional<int64_t> number = ToInteger(*value);
  if (!number.has_value()) return WrongValue(PathTo(field), "an integer of 64 bits", *value);
  out = static_cast<uint64_t>(*number);
  return absl::OkStatus();
}

absl::Status Fields::Read(std::string_view field, std::vector<TokenId>& out) const {
  const Json* value = Find(field);
  if (value == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(out, ToTokenIds(PathTo(field), *value));
  return absl::OkStatus();
}

absl::Status Fields::Read(std::string_view field, std::vector<std::string>& out) const {
  const Json* value = Find(field);
  if (value == nullptr) return absl::OkStatus();
  if (value->is_string()) {
    out = {value->as_string()};
    return absl::OkStatus();
  }
  if (!value->is_array()) {
    return WrongValue(PathTo(field), "a string or an array of strings", *value);
  }
  out.clear();
  for (const Json& item : value->as_array()) {
    if (!item.is_string()) {
      return WrongValue(fmt::format("{}[{}]", PathTo(field), out.size()), "a string", item);
    }
    out.push_back(item.as_string());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TokenId>> ToTokenIds(std::string_view field, const Json& value) {
  if (!value.is_array()) return WrongValue(field, "an array of token ids", value);
  std::vector<TokenId> ids;
  ids.reserve(value.as_array().size());
  for (const Json& item : value.as_array()) {
    const std::optional<int32_t> id = ToInt32(item);
    if (!id.has_value()) {
      return WrongValue(fmt::format("{}[{}]", field, ids.size()), "a token id", item);
    }
    ids.push_back(*id);
  }
  return ids;
}

}  // namespace polyreme::api
