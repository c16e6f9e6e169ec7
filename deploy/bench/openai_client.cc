#include "deploy/bench/openai_client.h"

#include <algorithm>
#include <cctype>

#include "deploy/bench/chunk_scan.h"
#include "deploy/bench/http_client.h"

namespace polyreme::bench {
namespace {

constexpr size_t kMessageBytes = 400;
constexpr Json::ParseOptions kAnswerOptions = {.bytes_max = 16 << 20, .values_max = 1 << 20};

// One line, not too long.
std::string Shortened(std::string_view text) {
  std::string out(text.substr(0, kMessageBytes));
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  }
  while (out.ends_with(' ')) out.pop_back();
  return out;
}

std::string MessageOf(const Json& error) {
  if (error.is_string()) return Shortened(error.as_string());
  if (const Json* message = error.Find("message"); message != nullptr && message->is_string()) {
    return Shortened(message->as_string());
  }
  return Shortened(error.Dump());
}

std::optional<int32_t> CountOf(const Json& usage, std::string_view name) {
  const Json* count = usage.Find(name);
  if (count == nullptr || !count->is_int()) return std::nullopt;
  return static_cast<int32_t>(std::clamp<int64_t>(count->as_int(), 0, INT32_MAX));
}

bool IsText(const Json* value) {
  return value != nullptr && value->is_string() && !value->as_string().empty();
}

bool HasText(const Json& choice) {
  const Json* delta = choice.Find("delta");
  if (delta == nullptr) return IsText(choice.Find("text"));
  return IsText(delta->Find("content")) || IsText(delta->Find("reasoning_content")) ||
         IsText(delta->Find("reasoning")) || delta->Find("tool_calls") != nullptr;
}

}  // namespace

std::string OpenAiTarget::headers() const {
  return api_key.empty() ? "" : fmt::format("Authorization: Bearer {}\r\n", api_key);
}

std::string OpenAiTarget::path() const {
  if (!endpoint.empty()) return endpoint;
  return chat ? "/v1/chat/completions" : "/v1/completions";
}

absl::StatusOr<std::string> GenerationBody(const OpenAiTarget& target, const Prompt& prompt,
                                           int32_t max_tokens) {
  Json body = Json::MakeObject({{"model", target.model}});
  const auto* const text = std::get_if<std::string>(&prompt);
  if (target.chat) {
    if (text == nullptr) {
      return InvalidArgument("prompts of token ids need /v1/completions (--backend openai)");
    }
    Json messages = Json::MakeArray();
    messages.Append(Json::MakeObject({{"role", "user"}, {"content", *text}}));
    body.Set("messages", std::move(messages));
    body.Set("max_completion_tokens", max_tokens);
  } else if (text != nullptr) {
    body.Set("prompt", *text);
  } else {
    Json ids = Json::MakeArray();
    for (const TokenId id : std::get<std::vector<TokenId>>(prompt)) ids.Append(id);
    body.Set("prompt", std::move(ids));
  }
  // Chats have it under both names: older servers know only this one.
  body.Set("max_tokens", max_tokens);
  body.Set("temperature", target.temperature);
  body.Set("stream", true);
  if (target.include_usage) {
    body.Set("stream_options", Json::MakeObject({{"include_usage", true}}));
  }
  if (target.ignore_eos) body.Set("ignore_eos", true);
  for (const auto& [name, value] : target.extra.members()) body.Set(name, value);
  return body.Dump();
}

absl::StatusOr<StreamChunk> ReadStreamChunk(std::string_view data) {
  StreamChunk chunk;
  if (IsPlainTextChunk(data)) {
    chunk.has_text = true;
    return chunk;
  }
  ASSIGN_OR_RETURN(const Json json, Json::Parse(data, kAnswerOptions));
  if (const Json* error = json.Find("error"); error != nullptr && !error->is_null()) {
    chunk.error = MessageOf(*error);
    if (chunk.error.empty()) chunk.error = "an error without a message";
    return chunk;
  }
  if (json.Find("object") != nullptr && json.Find("choices") == nullptr) {
    chunk.error = MessageOf(json);  // an error as servers had it before they wrapped it
    return chunk;
  }
  const Json* choices = json.Find("choices");
  if (choices == nullptr || !choices->is_array()) {
    return InvalidArgument("expected a chunk with choices, got {}", Shortened(data));
  }
  for (const Json& choice : choices->as_array()) {
    chunk.has_text = chunk.has_text || HasText(choice);
    if (const Json* reason = choice.Find("finish_reason"); IsText(reason)) {
      chunk.finish_reason = reason->as_string();
    }
  }
  if (const Json* usage = json.Find("usage"); usage != nullptr && usage->is_object()) {
    chunk.prompt_tokens = CountOf(*usage, "prompt_tokens");
    chunk.completion_tokens = CountOf(*usage, "completion_tokens");
  }
  return chunk;
}

std::string ErrorMessage(std::string_view body) {
  const absl::StatusOr<Json> json = Json::Parse(body, kAnswerOptions);
  if (!json.ok() || !json->is_object()) return Shortened(body);
  if (const Json* error = json->Find("error"); error != nullptr) return MessageOf(*error);
  if (const Json* detail = json->Find("detail"); detail != nullptr) return MessageOf(*detail);
  return MessageOf(*json);
}

absl::StatusOr<std::vector<ServedModel>> ReadModelList(std::string_view body) {
  ASSIGN_OR_RETURN(const Json json, Json::Parse(body, kAnswerOptions));
  const Json* data = json.Find("data");
  if (data == nullptr || !data->is_array()) {
    return InvalidArgument("expected {{\"data\": [...]}}, got {}", Shortened(body));
  }
  std::vector<ServedModel> models;
  for (const Json& entry : data->as_array()) {
    const Json* id = entry.Find("id");
    if (!IsText(id)) continue;
    models.push_back({id->as_string(), CountOf(entry, "max_model_len").value_or(0)});
  }
  return models;
}

absl::StatusOr<ServedModel> AskServer(const OpenAiTarget& target, const std::string& wanted,
                                      absl::Duration patience) {
  const std::string where = target.url.authority();
  ASSIGN_OR_RETURN(
      const HttpReply reply,
      Fetch(target.url, GetRequest(target.url, "/v1/models", target.headers()), patience));
  if (reply.code != 200) {
    return Unavailable("{} answers GET /v1/models with {}: {}", where, reply.code,
                       ErrorMessage(reply.body));
  }
  absl::StatusOr<std::vector<ServedModel>> models = ReadModelList(reply.body);
  if (!models.ok()) {
    return Annotate(models.status(), fmt::format("{} is no OpenAI-compatible server", where));
  }
  if (models->empty()) return NotFound("{} serves no model", where);
  std::string names;
  for (const ServedModel& model : *models) {
    if (wanted.empty() || model.id == wanted) return model;
    names += (names.empty() ? "" : ", ") + model.id;
  }
  return NotFound("model '{}' is not served at {}, which has: {:.300}", wanted, where, names);
}

}  // namespace polyreme::bench
