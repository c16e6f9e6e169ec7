// Reads one object of a config.json key by key: each key with its type and range, or an error that
// names it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "parallel/base/json.h"
#include "parallel/base/status.h"

namespace polyreme::plan {

struct IntBounds {
  int64_t min = 0;
  int64_t max = 0;
};
struct DoubleBounds {
  double min = 0;
  double max = 0;
};

// Borrows the object. A key that is absent or null is nullopt; InvalidArgument if it has another
// type or is out of bounds: "config.json: rope_scaling.factor: expected a number from 1 to 1e6, got
// -1".
class ConfigReader {
 public:
  // where: put before each key, e.g. "config.json: rope_scaling.".
  ConfigReader(const Json& object, std::string where)
      : object_(&object), where_(std::move(where)) {}

  absl::StatusOr<std::optional<int64_t>> FindInt(std::string_view key, IntBounds bounds) const;
  absl::StatusOr<std::optional<double>> FindDouble(std::string_view key, DoubleBounds bounds) const;
  absl::StatusOr<std::optional<bool>> FindBool(std::string_view key) const;
  absl::StatusOr<std::optional<std::string>> FindString(std::string_view key) const;
  // nullptr if absent or null.
  const Json* Find(std::string_view key) const;

  // As Find..., but the key must be there.
  absl::StatusOr<int64_t> Int(std::string_view key, IntBounds bounds) const;
  absl::StatusOr<double> Double(std::string_view key, DoubleBounds bounds) const;
  absl::StatusOr<std::string> String(std::string_view key) const;
  // As Find..., with what an absent key means.
  absl::StatusOr<int64_t> IntOr(std::string_view key, IntBounds bounds, int64_t absent) const;
  absl::StatusOr<double> DoubleOr(std::string_view key, DoubleBounds bounds, double absent) const;
  absl::StatusOr<bool> BoolOr(std::string_view key, bool absent) const;

  const Json& object() const { return *object_; }
  std::string PathOf(std::string_view key) const { return where_ + std::string(key); }

 private:
  const Json* object_;
  std::string where_;
};

}  // namespace polyreme::plan
