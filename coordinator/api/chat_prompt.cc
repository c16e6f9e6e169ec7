#include "coordinator/api/chat_prompt.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"
#include "parallel/base/limits.h"

namespace polyreme::api {
namespace {

constexpr std::string_view kWhiteSpace = " \t\n\r\f\v";

// Names that the renderer itself gives to the template.
constexpr std::array<std::string_view, 6> kReservedNames = {
    "messages",     "tools", "documents", "add_generation_prompt", "continue_final_message",
    "chat_template"};

absl::StatusOr<Json> JoinParts(const Json& parts, const std::string& field) {
  std::string text;
  for (size_t i = 0; i < parts.as_array().size(); ++i) {
    const Json& part = parts.as_array()[i];
    const std::string name = fmt::format("{}[{}]", field, i);
    const Json* words = &part;
    if (part.is_object()) {
      const Json* type = part.Find("type");
      if (type == nullptr || *type != Json("text")) {
        return WrongValue(name + ".type", "\"text\", the only kind of content this server takes",
                          type == nullptr ? Json() : *type);
      }
      words = part.Find("text");
    }
    if (words == nullptr || !words->is_string()) {
      return WrongValue(name + ".text", "a string", words == nullptr ? Json() : *words);
    }
    if (i > 0) text += '\n';
    text += words->as_string();
  }
  return Json(std::move(text));
}

// Clients send the arguments of earlier calls as JSON in a string; templates print objects.
void ParseToolArguments(Json& tool_calls) {
  if (!tool_calls.is_array()) return;
  for (Json& call : tool_calls.as_array()) {
    if (!call.is_object()) continue;
    for (auto& [key, function] : call.members()) {
      if (key != "function" || !function.is_object()) continue;
      const Json* arguments = function.Find("arguments");
      if (arguments == nullptr || !arguments->is_string()) continue;
      absl::StatusOr<Json> parsed = Json::Parse(arguments->as_string());
      if (parsed.ok() && parsed->is_object()) function.Set("arguments", *std::move(parsed));
    }
  }
}

absl::Status NormalizeMessage(Json& message, const std::string& field) {
  if (!message.is_object()) return WrongValue(field, "an object", message);
  const Json* role = message.Find("role");
  if (role == nullptr || !role->is_string() || role->as_string().empty()) {
    return WrongValue(field + ".role", "the name of a role", role == nullptr ? Json() : *role);
  }
  const bool may_lack_content = role->as_string() == "assistant";
  bool has_content = false;
  for (auto& [key, value] : message.members()) {
    if (key == "tool_calls") ParseToolArguments(value);
    if (key != "content") continue;
    if (value.is_array()) {
      ASSIGN_OR_RETURN(value, JoinParts(value, field + ".content"));
    }
    if (!value.is_string() && !value.is_null()) {
      return WrongValue(field + ".content", "a string or an array of text parts", value);
    }
    has_content = value.is_string();
  }
  if (!has_content && !may_lack_content) return WrongValue(field + ".content", "a string", Json());
  return absl::OkStatus();
}

absl::Status CheckTools(const Json& tools) {
  if (!tools.is_array()) return WrongValue("tools", "an array of functions", tools);
  for (size_t i = 0; i < tools.as_array().size(); ++i) {
    const Json& tool = tools.as_array()[i];
    const Json* function = tool.Find("function");
    if (function == nullptr || !function->is_object()) {
      return WrongValue(fmt::format("tools[{}].function", i), "an object",
                        function == nullptr ? Json() : *function);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Json> ReadTemplateArguments(const Fields& fields) {
  Json arguments = Json::MakeObject();
  if (const Json* given = fields.Find("chat_template_kwargs"); given != nullptr) {
    if (!given->is_object()) return WrongValue("chat_template_kwargs", "an object", *given);
    arguments = *given;
  }
  for (const std::string_view name : kReservedNames) {
    if (arguments.Find(name) != nullptr) {
      return InvalidArgument("chat_template_kwargs.{}: expected it outside of chat_template_kwargs",
                             name);
    }
  }
  if (const Json* effort = fields.Find("reasoning_effort"); effort != nullptr) {
    arguments.Set("reasoning_effort", *effort);
  }
  return arguments;
}

std::string Strip(const std::string& text) {
  const size_t begin = text.find_first_not_of(kWhiteSpace);
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(kWhiteSpace) - begin + 1);
}

// Cuts the rendered chat behind the last message's words, so that the model goes on with them. As
// Transformers does: white space around the words counts only if the template has kept it.
absl::Status EndWithFinalMessage(const Json& messages, std::vector<text::Segment>& segments) {
  const Json* content = messages.as_array().back().Find("content");
  const std::string words = content == nullptr || !content->is_string() ? "" : content->as_string();
  const std::string stripped = Strip(words);
  std::string whole;
  for (const text::Segment& segment : segments) whole += segment.text;
  const size_t at = whole.rfind(stripped);
  if (stripped.empty() || at == std::string::npos) {
    return InvalidArgument(
        "continue_final_message: expected the last message's content to be in the prompt");
  }
  const std::string to_the_end = words.substr(words.find(stripped));
  const bool keeps_end = whole.compare(at, to_the_end.size(), to_the_end) == 0;
  size_t left = at + (keeps_end ? to_the_end.size() : stripped.size());
  for (text::Segment& segment : segments) {
    segment.text.resize(std::min(left, segment.text.size()));
    left -= segment.text.size();
  }
  std::erase_if(segments, [](const text::Segment& segment) { return segment.text.empty(); });
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Json> NormalizeMessages(const Json& messages) {
  if (!messages.is_array() || messages.as_array().empty()) {
    return WrongValue("messages", "a non-empty array", messages);
  }
  if (std::ssize(messages.as_array()) > limits::kMaxMessages) {
    return InvalidArgument("messages: expected at most {} messages, got {}", limits::kMaxMessages,
                           messages.as_array().size());
  }
  Json normalized = messages;
  for (size_t i = 0; i < normalized.as_array().size(); ++i) {
    RETURN_IF_ERROR(NormalizeMessage(normalized.as_array()[i], fmt::format("messages[{}]", i)));
  }
  return normalized;
}

absl::StatusOr<std::vector<TokenId>> TokenizeChat(const Fields& fields, const ApiContext& context) {
  if (context.chat_template == nullptr) {
    return InvalidArgument(
        "messages: expected a completion's prompt, since this model has no chat template");
  }
  const Json* given = fields.Find("messages");
  ASSIGN_OR_RETURN(const Json messages, NormalizeMessages(given == nullptr ? Json() : *given));
  text::ChatTemplate::Options options;
  options.tools = fields.Find("tools");
  if (options.tools != nullptr) RETURN_IF_ERROR(CheckTools(*options.tools));
  if (options.tools != nullptr && options.tools->as_array().empty()) options.tools = nullptr;
  options.documents = fields.Find("documents");
  ASSIGN_OR_RETURN(const Json arguments, ReadTemplateArguments(fields));
  options.extra = &arguments;
  options.now = context.clock.Now();
  bool continues = false;
  RETURN_IF_ERROR(fields.Read("continue_final_message", continues));
  options.add_generation_prompt = !continues;
  RETURN_IF_ERROR(fields.Read("add_generation_prompt", options.add_generation_prompt));
  if (continues && options.add_generation_prompt) {
    return InvalidArgument(
        "continue_final_message: expected it without add_generation_prompt, got both");
  }
  bool adds_special_tokens = false;
  RETURN_IF_ERROR(fields.Read("add_special_tokens", adds_special_tokens));

  absl::StatusOr<text::RenderedChat> chat = context.chat_template->Render(messages, options);
  if (!chat.ok()) return Annotate(chat.status(), "messages");
  if (continues) RETURN_IF_ERROR(EndWithFinalMessage(messages, chat->segments));
  absl::StatusOr<std::vector<TokenId>> tokens = context.tokenizer.EncodeSegments(
      chat->segments, adds_special_tokens ? text::SpecialTokensAround::kAdded
                                          : text::SpecialTokensAround::kLeftOut);
  if (!tokens.ok()) return Annotate(tokens.status(), "messages");
  return tokens;
}

}  // namespace polyreme::api
