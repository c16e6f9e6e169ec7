#include "coordinator/text/tokenizer_config.h"

#include <algorithm>
#include <charconv>
#include <string>

#include "coordinator/text/json_fields.h"
#include "parallel/base/json.h"

namespace polyreme::text {
namespace {

constexpr std::string_view kFile = "tokenizer_config.json";

// A special token is written as its content or as an object of AddedToken's fields.
absl::StatusOr<AddedToken> ReadSpecialToken(const Json& json, const std::string& path) {
  AddedToken token;
  if (json.is_string()) {
    token.content = json.as_string();
    if (token.content.empty()) return InvalidArgument("{}: expected a token, got \"\"", path);
  } else {
    ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(json, path));
    ASSIGN_OR_RETURN(token, AddedToken::Read(fields));
  }
  token.special = true;
  return token;
}

absl::StatusOr<std::optional<AddedToken>> ReadNamed(const JsonFields& file, std::string_view key) {
  const Json* json = file.Find(key);
  if (json == nullptr) return std::optional<AddedToken>();
  ASSIGN_OR_RETURN(AddedToken token, ReadSpecialToken(*json, file.PathTo(key)));
  return std::optional<AddedToken>(std::move(token));
}

// A list of tokens, or an object of names and tokens.
absl::Status ReadExtra(const JsonFields& file, std::string_view key,
                       std::vector<AddedToken>& tokens) {
  const Json* json = file.Find(key);
  if (json == nullptr) return absl::OkStatus();
  const std::string path = file.PathTo(key);
  const auto add = [&](const Json& item) -> absl::Status {
    ASSIGN_OR_RETURN(AddedToken token, ReadSpecialToken(item, path));
    tokens.push_back(std::move(token));
    return absl::OkStatus();
  };
  if (json->is_array()) {
    for (const Json& item : json->as_array()) RETURN_IF_ERROR(add(item));
  } else if (json->is_object()) {
    for (const auto& [name, item] : json->members()) RETURN_IF_ERROR(add(item));
  } else {
    return InvalidArgument("{}: expected an array or an object, got {}", path, json->type_name());
  }
  return absl::OkStatus();
}

absl::Status ReadAdded(const JsonFields& file, std::vector<AddedToken>& tokens) {
  if (file.Find("added_tokens_decoder") == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const JsonFields added, file.Object("added_tokens_decoder"));
  for (const auto& [key, value] : added.json().members()) {
    int32_t id = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0) {
      return InvalidArgument("{}: expected token ids as keys, got \"{}\"", added.path(), key);
    }
    ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(value, added.PathTo(key)));
    ASSIGN_OR_RETURN(AddedToken token, AddedToken::Read(fields));
    token.id = id;
    tokens.push_back(std::move(token));
  }
  std::sort(tokens.begin(), tokens.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerConfig> TokenizerConfig::Parse(std::string_view text) {
  const absl::StatusOr<Json> json = Json::Parse(text);
  if (!json.ok()) return Annotate(json.status(), kFile);
  ASSIGN_OR_RETURN(const JsonFields file, JsonFields::Of(*json, std::string(kFile)));
  ASSIGN_OR_RETURN(const bool splits_special_tokens, file.Bool("split_special_tokens", false));
  if (splits_special_tokens) {
    return InvalidArgument("{}: expected false, got true", file.PathTo("split_special_tokens"));
  }
  TokenizerConfig config;
  ASSIGN_OR_RETURN(config.bos, ReadNamed(file, "bos_token"));
  ASSIGN_OR_RETURN(config.eos, ReadNamed(file, "eos_token"));
  ASSIGN_OR_RETURN(config.unk, ReadNamed(file, "unk_token"));
  ASSIGN_OR_RETURN(config.pad, ReadNamed(file, "pad_token"));
  for (const std::string_view key : {"sep_token", "cls_token", "mask_token"}) {
    ASSIGN_OR_RETURN(std::optional<AddedToken> token, ReadNamed(file, key));
    if (token) config.other_special_tokens.push_back(*std::move(token));
  }
  RETURN_IF_ERROR(ReadExtra(file, "additional_special_tokens", config.other_special_tokens));
  RETURN_IF_ERROR(ReadExtra(file, "extra_special_tokens", config.other_special_tokens));
  RETURN_IF_ERROR(ReadAdded(file, config.added_tokens));
  return config;
}

}  // namespace polyreme::text
