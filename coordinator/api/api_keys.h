// The keys that open the public faces. Only their hashes are kept, and comparing takes the same
// time wherever two keys differ.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace polyreme::api {

class ApiKeys {
 public:
  // No key: everything is open.
  explicit ApiKeys(const std::vector<std::string>& keys);

  bool required() const { return !hashes_.empty(); }
  // Whether the value of an Authorization header is "Bearer <one of the keys>", or no key is
  // required.
  bool Opens(std::string_view authorization) const;

 private:
  using Hash = std::array<unsigned char, 32>;  // SHA-256
  static Hash HashOf(std::string_view key);
  std::vector<Hash> hashes_;
};

}  // namespace polyreme::api
