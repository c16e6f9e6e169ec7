#include "coordinator/text/vocabulary.h"

#include <algorithm>

#include "parallel/base/limits.h"

namespace polyreme::text {

absl::Status Vocabulary::Add(std::string_view token, int64_t id) {
  if (id < 0 || id >= limits::kMaxVocabulary) {
    return InvalidArgument("token \"{}\": expected an id of 0 to {}, got {}", token,
                           limits::kMaxVocabulary - 1, id);
  }
  const TokenId token_id = static_cast<TokenId>(id);
  if (const std::string* holder = TokenString(token_id); holder != nullptr && *holder != token) {
    return InvalidArgument("tokens \"{}\" and \"{}\" have the same id {}", *holder, token, id);
  }
  const auto [entry, is_new] = ids_.try_emplace(std::string(token), token_id);
  if (!is_new && entry->second != token_id) {
    return InvalidArgument("token \"{}\" has two ids, {} and {}", token, entry->second, id);
  }
  if (token_id >= size()) strings_.resize(token_id + 1, nullptr);
  strings_[token_id] = &entry->first;
  return absl::OkStatus();
}

std::optional<TokenId> Vocabulary::Find(std::string_view token) const {
  const auto entry = ids_.find(token);
  if (entry == ids_.end()) return std::nullopt;
  return entry->second;
}

const std::string* Vocabulary::TokenString(TokenId id) const {
  return id >= 0 && id < size() ? strings_[id] : nullptr;
}

std::optional<TokenId> Vocabulary::FirstHole() const {
  const auto hole = std::find(strings_.begin(), strings_.end(), nullptr);
  if (hole == strings_.end()) return std::nullopt;
  return static_cast<TokenId>(hole - strings_.begin());
}

}  // namespace polyreme::text
