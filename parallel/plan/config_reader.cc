#include "parallel/plan/config_reader.h"

#include <cmath>

namespace polyreme::plan {
namespace {

constexpr size_t kMaxShownBytes = 80;

// The value as it stands in the file, cut short.
std::string Shown(const Json& value) {
  std::string text = value.Dump();
  if (text.size() > kMaxShownBytes) text = text.substr(0, kMaxShownBytes) + "...";
  return text;
}

template <class T>
absl::StatusOr<T> Required(absl::StatusOr<std::optional<T>> found, const std::string& path) {
  if (!found.ok()) return std::move(found).status();
  if (!found->has_value()) return InvalidArgument("{}: expected this key, it is missing", path);
  return **std::move(found);
}

template <class T>
absl::StatusOr<T> Defaulted(absl::StatusOr<std::optional<T>> found, T absent) {
  if (!found.ok()) return std::move(found).status();
  return found->value_or(absent);
}

}  // namespace

const Json* ConfigReader::Find(std::string_view key) const {
  const Json* value = object_->Find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

absl::StatusOr<std::optional<int64_t>> ConfigReader::FindInt(std::string_view key,
                                                             IntBounds bounds) const {
  const Json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_int() || value->as_int() < bounds.min || value->as_int() > bounds.max) {
    return InvalidArgument("{}: expected an integer from {} to {}, got {}", PathOf(key), bounds.min,
                           bounds.max, Shown(*value));
  }
  return value->as_int();
}

absl::StatusOr<std::optional<double>> ConfigReader::FindDouble(std::string_view key,
                                                               DoubleBounds bounds) const {
  const Json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number() || !std::isfinite(value->as_double()) ||
      value->as_double() < bounds.min || value->as_double() > bounds.max) {
    return InvalidArgument("{}: expected a number from {} to {}, got {}", PathOf(key), bounds.min,
                           bounds.max, Shown(*value));
  }
  return value->as_double();
}

absl::StatusOr<std::optional<bool>> ConfigReader::FindBool(std::string_view key) const {
  const Json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_bool()) {
    return InvalidArgument("{}: expected true or false, got {}", PathOf(key), Shown(*value));
  }
  return value->as_bool();
}

absl::StatusOr<std::optional<std::string>> ConfigReader::FindString(std::string_view key) const {
  const Json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    return InvalidArgument("{}: expected a string, got {}", PathOf(key), Shown(*value));
  }
  return value->as_string();
}

absl::StatusOr<int64_t> ConfigReader::Int(std::string_view key, IntBounds bounds) const {
  return Required(FindInt(key, bounds), PathOf(key));
}

absl::StatusOr<double> ConfigReader::Double(std::string_view key, DoubleBounds bounds) const {
  return Required(FindDouble(key, bounds), PathOf(key));
}

absl::StatusOr<std::string> ConfigReader::String(std::string_view key) const {
  return Required(FindString(key), PathOf(key));
}

absl::StatusOr<int64_t> ConfigReader::IntOr(std::string_view key, IntBounds bounds,
                                            int64_t absent) const {
  return Defaulted(FindInt(key, bounds), absent);
}

absl::StatusOr<double> ConfigReader::DoubleOr(std::string_view key, DoubleBounds bounds,
                                              double absent) const {
  return Defaulted(FindDouble(key, bounds), absent);
}

absl::StatusOr<bool> ConfigReader::BoolOr(std::string_view key, bool absent) const {
  return Defaulted(FindBool(key), absent);
}

}  // namespace polyreme::plan
