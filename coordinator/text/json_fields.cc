#include "coordinator/text/json_fields.h"

#include <algorithm>

namespace polyreme::text {

absl::StatusOr<JsonFields> JsonFields::Of(const Json& value, std::string path) {
  if (!value.is_object())
    return InvalidArgument("{}: expected an object, got {}", path, value.type_name());
  return JsonFields(value, std::move(path));
}

absl::Status JsonFields::AllowOnly(std::initializer_list<std::string_view> keys) const {
  for (const auto& [key, value] : json_->members()) {
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
      return InvalidArgument("{}: key \"{}\" is not known", path_, key);
    }
  }
  return absl::OkStatus();
}

const Json* JsonFields::Find(std::string_view key) const {
  const Json* value = json_->Find(key);
  return value != nullptr && value->is_null() ? nullptr : value;
}

absl::Status JsonFields::WrongType(std::string_view key, std::string_view expected,
                                   const Json& got) const {
  return InvalidArgument("{}: expected {}, got {}", PathTo(key), expected, got.type_name());
}

absl::StatusOr<const Json*> JsonFields::Required(std::string_view key,
                                                 std::string_view expected) const {
  const Json* value = Find(key);
  if (value == nullptr)
    return InvalidArgument("{}: expected {}, got nothing", PathTo(key), expected);
  return value;
}

absl::StatusOr<bool> JsonFields::Bool(std::string_view key, bool otherwise) const {
  const Json* value = Find(key);
  if (value == nullptr) return otherwise;
  if (!value->is_bool()) return WrongType(key, "a boolean", *value);
  return value->as_bool();
}

absl::StatusOr<int64_t> JsonFields::Integer(std::string_view key) const {
  ASSIGN_OR_RETURN(const Json* value, Required(key, "an integer"));
  if (!value->is_int()) return WrongType(key, "an integer", *value);
  return value->as_int();
}

absl::StatusOr<std::string> JsonFields::String(std::string_view key) const {
  ASSIGN_OR_RETURN(const Json* value, Required(key, "a string"));
  if (!value->is_string()) return WrongType(key, "a string", *value);
  return value->as_string();
}

absl::StatusOr<std::string> JsonFields::String(std::string_view key,
                                               std::string_view otherwise) const {
  if (Find(key) == nullptr) return std::string(otherwise);
  return String(key);
}

absl::StatusOr<const Json::Array*> JsonFields::Array(std::string_view key) const {
  ASSIGN_OR_RETURN(const Json* value, Required(key, "an array"));
  if (!value->is_array()) return WrongType(key, "an array", *value);
  return &value->as_array();
}

absl::StatusOr<JsonFields> JsonFields::Object(std::string_view key) const {
  ASSIGN_OR_RETURN(const Json* value, Required(key, "an object"));
  return Of(*value, PathTo(key));
}

std::string JsonFields::PathTo(std::string_view key) const {
  const bool is_file = path_.find(':') == std::string::npos;
  return fmt::format("{}{}{}", path_, is_file ? ": " : ".", key);
}

std::string JsonFields::PathTo(std::string_view key, size_t index) const {
  return fmt::format("{}[{}]", PathTo(key), index);
}

}  // namespace polyreme::text
