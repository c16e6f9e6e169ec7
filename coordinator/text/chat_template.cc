#include "coordinator/text/chat_template.h"

#include <algorithm>
#include <iterator>

#include "coordinator/text/jinja_eval.h"
#include "coordinator/text/jinja_parser.h"

namespace polyreme::text {

struct ChatTemplate::Program {
  jinja::Body body;

  static absl::StatusOr<std::shared_ptr<const Program>> Parse(std::string_view source) {
    if (std::ssize(source) > limits::kMaxTemplateBytes) {
      return InvalidArgument("expected a chat template of at most {} bytes, got {}",
                             limits::kMaxTemplateBytes, source.size());
    }
    auto body = jinja::ParseTemplate(source);
    if (!body.ok()) return Annotate(body.status(), "chat template");
    return std::make_shared<const Program>(Program{std::move(*body)});
  }
};

namespace {

using jinja::FromJson;
using jinja::FromString;
using jinja::MakeDict;
using jinja::MakeList;
using jinja::Origin;
using jinja::Value;

// Some templates build a token from a role ('<|' + role + '|>'), so these roles may be part of one.
// Any other role is what its sender made it.
bool IsKnownRole(std::string_view role) {
  constexpr std::string_view kRoles[] = {"assistant", "developer", "function", "ipython",
                                         "system",    "tool",      "user"};
  return std::find(std::begin(kRoles), std::end(kRoles), role) != std::end(kRoles);
}

Value MessageValue(const Json& message) {
  jinja::Dict fields;
  for (const auto& [key, value] : message.members()) {
    const bool trusted = key == "role" && value.is_string() && IsKnownRole(value.as_string());
    fields.Set(FromString(key, Origin::kContent),
               trusted ? FromString(value.as_string(), Origin::kTemplate) : FromJson(value));
  }
  return MakeDict(std::move(fields));
}

absl::StatusOr<Value> MessagesValue(const Json& messages) {
  if (!messages.is_array()) {
    return InvalidArgument("messages: expected an array, got {}", messages.type_name());
  }
  std::vector<Value> values;
  for (const Json& message : messages.as_array()) {
    if (!message.is_object()) {
      return InvalidArgument("messages[{}]: expected an object, got {}", values.size(),
                             message.type_name());
    }
    values.push_back(MessageValue(message));
  }
  return MakeList(jinja::List::Kind::kList, std::move(values));
}

// The request's own variables may not stand in for what the server, the checkpoint or Jinja define.
absl::Status AddExtra(const Json& extra, jinja::Variables& variables) {
  if (!extra.is_object()) {
    return InvalidArgument("chat_template_kwargs: expected an object, got {}", extra.type_name());
  }
  for (const auto& [key, value] : extra.members()) {
    const auto is_taken = [&key = key](const auto& variable) { return variable.first == key; };
    if (jinja::IsFunction(key) || key == "loop" || key == "caller" ||
        std::any_of(variables.begin(), variables.end(), is_taken)) {
      return InvalidArgument("chat_template_kwargs: '{:.100}' cannot be set", key);
    }
    variables.emplace_back(key, FromJson(value));
  }
  return absl::OkStatus();
}

}  // namespace

std::string RenderedChat::Concat() const {
  std::string text;
  for (const Segment& segment : segments) text += segment.text;
  return text;
}

absl::StatusOr<ChatTemplate> ChatTemplate::Parse(std::string_view source,
                                                 SpecialTokens special_tokens) {
  ChatTemplate chat;
  ASSIGN_OR_RETURN(chat.program_, Program::Parse(source));
  chat.special_tokens_ = std::move(special_tokens);
  return chat;
}

absl::Status ChatTemplate::SetToolUse(std::string_view source) {
  ASSIGN_OR_RETURN(tool_use_, Program::Parse(source));
  return absl::OkStatus();
}

absl::StatusOr<RenderedChat> ChatTemplate::Render(const Json& messages,
                                                  const Options& options) const {
  jinja::Variables variables;
  ASSIGN_OR_RETURN(Value conversation, MessagesValue(messages));
  variables.emplace_back("messages", std::move(conversation));
  // As Transformers has it, tools and documents are always defined, if only as none.
  const auto json_or_none = [](const Json* json) { return json ? FromJson(*json) : Value(); };
  variables.emplace_back("tools", json_or_none(options.tools));
  variables.emplace_back("documents", json_or_none(options.documents));
  variables.emplace_back("add_generation_prompt", Value(options.add_generation_prompt));
  for (const auto& [name, token] : special_tokens_) {
    variables.emplace_back(name, FromString(token, Origin::kTemplate));
  }
  if (options.extra != nullptr) RETURN_IF_ERROR(AddExtra(*options.extra, variables));

  const bool uses_tools = options.tools != nullptr && !options.tools->is_null();
  const Program& program = uses_tools && tool_use_ != nullptr ? *tool_use_ : *program_;
  jinja::Budget budget;
  const jinja::Context context{budget, options.now, options.time_zone};
  const auto text = jinja::Evaluate(program.body, variables, context);
  if (!text.ok()) return Annotate(text.status(), "chat template");
  RenderedChat rendered;
  text->ForEachRun([&](std::string_view bytes, Origin origin) {
    rendered.segments.push_back({std::string(bytes), origin == Origin::kTemplate});
  });
  return rendered;
}

}  // namespace polyreme::text
