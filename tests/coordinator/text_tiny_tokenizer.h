// A tokenizer.json small enough to be written in a test: 256 bytes, a few merges, a few added
// tokens.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"
#include "parallel/base/json.h"
#include "parallel/base/status.h"

namespace polyreme::text {

// Byte b has id b; then "ab" 256, "abc" 257, "aa" 258, "aaaa" 259; then the added tokens "<|end|>"
// 260 (special) and "<think>" 261 (not special).
inline Json TinyTokenizerJson() {
  Json vocab = Json::MakeObject();
  for (int byte = 0; byte < 256; ++byte) {
    std::string character;
    AppendUtf8(AlphabetCharacter(static_cast<uint8_t>(byte)), character);
    vocab.members().emplace_back(character, byte);
  }
  int id = 256;
  for (const char* token : {"ab", "abc", "aa", "aaaa"}) vocab.Set(token, id++);
  Json merges = Json::MakeArray();
  for (const char* merge : {"a b", "ab c", "a a", "aa aa"}) merges.Append(merge);
  Json added = Json::MakeArray();
  added.Append(Json::MakeObject(
      {{"id", 260}, {"content", "<|end|>"}, {"normalized", false}, {"special", true}}));
  added.Append(Json::MakeObject(
      {{"id", 261}, {"content", "<think>"}, {"normalized", false}, {"special", false}}));
  const Json byte_level =
      Json::MakeObject({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}});
  return Json::MakeObject(
      {{"version", "1.0"},
       {"added_tokens", added},
       {"normalizer", Json()},
       {"pre_tokenizer", byte_level},
       {"post_processor", Json()},
       {"decoder", Json::MakeObject({{"type", "ByteLevel"}})},
       {"model", Json::MakeObject({{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}})}});
}

// The member of a member ... of an object, for changing.
inline Json& At(Json& json, std::string_view key) {
  for (auto& [name, value] : json.members()) {
    if (name == key) return value;
  }
  json.members().emplace_back(std::string(key), Json());
  return json.members().back().second;
}

inline std::unique_ptr<const Tokenizer> LoadOrDie(const Json& json,
                                                  std::string_view config = "{}") {
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer =
      Tokenizer::LoadFromText(json.Dump(), config);
  CHECK(tokenizer.ok(), "{}", Message(tokenizer.status()));
  return *std::move(tokenizer);
}

inline std::unique_ptr<const Tokenizer> LoadDirectoryOrDie(const std::string& directory) {
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer = Tokenizer::Load(directory);
  CHECK(tokenizer.ok(), "{}", Message(tokenizer.status()));
  return *std::move(tokenizer);
}

}  // namespace polyreme::text
