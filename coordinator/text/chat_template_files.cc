// Where checkpoints keep their chat template: one of three files, one of three forms.
#include "coordinator/text/chat_template.h"
#include "parallel/base/file.h"
#include "parallel/base/limits.h"

namespace polyreme::text {
namespace {

// What a checkpoint says about chats.
struct Source {
  std::string chat;
  std::string tool_use;  // empty: the same template
};

// The text of a file, nullopt if there is no such file.
absl::StatusOr<std::optional<std::string>> ReadIfThere(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, limits::kMaxConfigFileBytes);
  if (absl::IsNotFound(text.status())) return std::nullopt;
  RETURN_IF_ERROR(text.status());
  return *std::move(text);
}

// The object in a file; an empty one if there is no such file.
absl::StatusOr<Json> ReadJsonFile(const std::string& path) {
  ASSIGN_OR_RETURN(const auto text, ReadIfThere(path));
  if (!text.has_value()) return Json::MakeObject();
  auto json = Json::Parse(*text);
  if (!json.ok()) return Annotate(json.status(), path);
  if (!json->is_object()) {
    return InvalidArgument("{}: expected an object, got {}", path, json->type_name());
  }
  return json;
}

// A template as JSON holds it: a string, or a list of {"name": ..., "template": ...}.
absl::StatusOr<std::optional<Source>> FromMember(const Json& config, const std::string& path) {
  const Json* member = config.Find("chat_template");
  if (member == nullptr || member->is_null()) return std::nullopt;
  if (member->is_string()) return Source{member->as_string(), ""};
  if (!member->is_array()) {
    return InvalidArgument("{}: chat_template: expected a string or a list, got {}", path,
                           member->type_name());
  }
  Source source;
  for (const Json& entry : member->as_array()) {
    const Json* name = entry.Find("name");
    const Json* text = entry.Find("template");
    if (name == nullptr || !name->is_string() || text == nullptr || !text->is_string()) {
      return InvalidArgument("{}: chat_template: expected entries with 'name' and 'template'",
                             path);
    }
    if (name->as_string() == "default") source.chat = text->as_string();
    if (name->as_string() == "tool_use") source.tool_use = text->as_string();
  }
  if (source.chat.empty()) {
    return InvalidArgument("{}: chat_template: expected one named 'default' in the list", path);
  }
  return source;
}

absl::StatusOr<std::optional<Source>> FindSource(const std::string& directory,
                                                 const Json& tokenizer_config) {
  ASSIGN_OR_RETURN(auto chat, ReadIfThere(directory + "/chat_template.jinja"));
  if (chat.has_value()) {
    ASSIGN_OR_RETURN(auto tool_use,
                     ReadIfThere(directory + "/additional_chat_templates/tool_use.jinja"));
    return Source{std::move(*chat), std::move(tool_use).value_or("")};
  }
  const std::string processor = directory + "/chat_template.json";
  ASSIGN_OR_RETURN(const Json json, ReadJsonFile(processor));
  ASSIGN_OR_RETURN(auto source, FromMember(json, processor));
  if (source.has_value()) return source;
  return FromMember(tokenizer_config, directory + "/tokenizer_config.json");
}

// A token is spelled as a string, or as an object with "content".
const std::string* Spelling(const Json* token) {
  if (token != nullptr && token->is_object()) token = token->Find("content");
  return token != nullptr && token->is_string() ? &token->as_string() : nullptr;
}

ChatTemplate::SpecialTokens FindSpecialTokens(const Json& tokenizer_config, const Json& map) {
  ChatTemplate::SpecialTokens tokens;
  for (const char* name : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
                           "cls_token", "mask_token"}) {
    const std::string* spelling = Spelling(tokenizer_config.Find(name));
    if (spelling == nullptr) spelling = Spelling(map.Find(name));
    if (spelling != nullptr) tokens.emplace_back(name, *spelling);
  }
  return tokens;
}

}  // namespace

absl::StatusOr<std::optional<ChatTemplate>> ChatTemplate::Load(const std::string& directory) {
  ASSIGN_OR_RETURN(const Json config, ReadJsonFile(directory + "/tokenizer_config.json"));
  ASSIGN_OR_RETURN(const Json map, ReadJsonFile(directory + "/special_tokens_map.json"));
  ASSIGN_OR_RETURN(const auto source, FindSource(directory, config));
  if (!source.has_value()) return std::nullopt;
  ASSIGN_OR_RETURN(ChatTemplate chat, Parse(source->chat, FindSpecialTokens(config, map)));
  if (!source->tool_use.empty()) RETURN_IF_ERROR(chat.SetToolUse(source->tool_use));
  return chat;
}

absl::StatusOr<ChatTemplate> ChatTemplate::LoadFrom(const std::string& template_file,
                                                    const std::string& directory) {
  ASSIGN_OR_RETURN(const Json config, ReadJsonFile(directory + "/tokenizer_config.json"));
  ASSIGN_OR_RETURN(const Json map, ReadJsonFile(directory + "/special_tokens_map.json"));
  ASSIGN_OR_RETURN(const auto source, ReadIfThere(template_file));
  if (!source.has_value()) return InvalidArgument("{}: no such chat template", template_file);
  return Parse(*source, FindSpecialTokens(config, map));
}

}  // namespace polyreme::text
