// Reads one object of a configuration file field by field, so that every refusal names file and
// key.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "parallel/base/json.h"
#include "parallel/base/status.h"

namespace polyreme::text {

// A borrowed JSON object and the path that leads to it: the file's name for the outermost one, then
// such as "tokenizer.json: pre_tokenizer.pretokenizers[1]". A member that is null counts as absent.
// All errors are InvalidArgument.
class JsonFields {
 public:
  static absl::StatusOr<JsonFields> Of(const Json& value, std::string path);

  // Refuses the first member whose key is not listed: what is not known might change the result.
  absl::Status AllowOnly(std::initializer_list<std::string_view> keys) const;

  // The member, or nullptr if it is absent or null.
  const Json* Find(std::string_view key) const;

  absl::StatusOr<bool> Bool(std::string_view key, bool otherwise) const;
  absl::StatusOr<int64_t> Integer(std::string_view key) const;
  absl::StatusOr<std::string> String(std::string_view key) const;
  absl::StatusOr<std::string> String(std::string_view key, std::string_view otherwise) const;
  absl::StatusOr<const Json::Array*> Array(std::string_view key) const;
  absl::StatusOr<JsonFields> Object(std::string_view key) const;

  const Json& json() const { return *json_; }
  const std::string& path() const { return path_; }
  // The path of a member, and of an element of a member that is an array.
  std::string PathTo(std::string_view key) const;
  std::string PathTo(std::string_view key, size_t index) const;

 private:
  JsonFields(const Json& json, std::string path) : json_(&json), path_(std::move(path)) {}
  absl::StatusOr<const Json*> Required(std::string_view key, std::string_view expected) const;
  absl::Status WrongType(std::string_view key, std::string_view expected, const Json& got) const;

  const Json* json_;
  std::string path_;
};

}  // namespace polyreme::text
