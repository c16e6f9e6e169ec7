// Reads the members of a request's JSON object. Every refusal names the field, what was expected
// and what came.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/base/ids.h"
#include "parallel/base/json.h"
#include "parallel/base/status.h"

namespace polyreme::api {

// "field: expected ..., got ...", with scalars spelt out (shortened) and others by their type.
absl::Status WrongValue(std::string_view field, std::string_view expected, const Json& got);

// A borrowed object. Members that are absent or null leave the target as it was. All errors are
// InvalidArgument.
class Fields {
 public:
  // `name` of the object itself, for messages; "" for the whole body.
  static absl::StatusOr<Fields> Of(const Json& value, std::string_view name = "");

  // nullptr if absent or null.
  const Json* Find(std::string_view field) const;
  // The field's name from the body on: "stream_options.include_usage".
  std::string PathTo(std::string_view field) const;

  absl::Status Read(std::string_view field, bool& out) const;
  absl::Status Read(std::string_view field, int32_t& out) const;
  absl::Status Read(std::string_view field, double& out) const;
  absl::Status Read(std::string_view field, std::string& out) const;
  absl::Status Read(std::string_view field,
                    std::optional<uint64_t>& out) const;  // any int64, as its bits
  absl::Status Read(std::string_view field, std::vector<TokenId>& out) const;
  // A string or an array of strings.
  absl::Status Read(std::string_view field, std::vector<std::string>& out) const;

 private:
  Fields(const Json& object, std::string_view name) : object_(&object), name_(name) {}

  const Json* object_;
  std::string name_;
};

// The token ids of an array; `field` for messages.
absl::StatusOr<std::vector<TokenId>> ToTokenIds(std::string_view field, const Json& value);

}  // namespace polyreme::api
