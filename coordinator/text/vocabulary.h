// Token strings and ids, both ways.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "parallel/base/ids.h"
#include "parallel/base/status.h"

namespace polyreme::text {

// Lets a map of strings be asked with a std::string_view.
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view s) const { return std::hash<std::string_view>{}(s); }
};

template <class Value>
using StringMap = std::unordered_map<std::string, Value, StringHash, std::equal_to<>>;

// Moves, never copies: what it hands out points into it.
class Vocabulary {
 public:
  Vocabulary() = default;
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;

  // InvalidArgument if the id is negative or not below limits::kMaxVocabulary, if another token has
  // it, or if the token has another id. Adding the same pair again changes nothing.
  absl::Status Add(std::string_view token, int64_t id);

  std::optional<TokenId> Find(std::string_view token) const;
  // nullptr if no token has this id. Stays valid as long as the vocabulary.
  const std::string* TokenString(TokenId id) const;

  // One more than the highest id.
  int32_t size() const { return static_cast<int32_t>(strings_.size()); }
  // The lowest id below size() that no token has.
  std::optional<TokenId> FirstHole() const;

 private:
  StringMap<TokenId> ids_;
  std::vector<const std::string*> strings_;  // keys of ids_, which never move; nullptr in a hole
};

}  // namespace polyreme::text
