#include "coordinator/api/openai_request.h"

#include <algorithm>
#include <utility>

#include "coordinator/api/chat_prompt.h"
#include "coordinator/api/fields.h"
#include "coordinator/api/sampling_fields.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"
#include "parallel/base/limits.h"

namespace polyreme::api {
namespace {

constexpr int32_t kCompletionMaxTokens = 16;  // OpenAI's default

struct Prompt {
  std::vector<TokenId> tokens;
  std::string text;  // as it came, or of the tokens
};

text::EncodeOptions EncodeOptionsFor(bool adds_special_tokens) {
  return {.in_text = text::SpecialTokensInText::kRecognised,
          .around = adds_special_tokens ? text::SpecialTokensAround::kAdded
                                        : text::SpecialTokensAround::kLeftOut};
}

absl::StatusOr<Prompt> PromptOfText(const std::string& text, const std::string& field,
                                    const text::EncodeOptions& options, const ApiContext& context) {
  absl::StatusOr<std::vector<TokenId>> tokens = context.tokenizer.Encode(text, options);
  if (!tokens.ok()) return Annotate(tokens.status(), field);
  return Prompt{*std::move(tokens), text};
}

absl::StatusOr<Prompt> PromptOfTokens(const Json& value, const std::string& field,
                                      const ApiContext& context) {
  ASSIGN_OR_RETURN(std::vector<TokenId> tokens, ToTokenIds(field, value));
  std::string text = context.tokenizer.Decode(tokens, text::SpecialTokensInOutput::kKept);
  return Prompt{std::move(tokens), std::move(text)};
}

// A string, an array of strings, an array of token ids, or an array of such arrays.
absl::StatusOr<std::vector<Prompt>> ReadPrompts(const Fields& fields, const ApiContext& context) {
  const Json* value = fields.Find("prompt");
  if (value == nullptr) return WrongValue("prompt", "text or token ids", Json());
  bool adds_special_tokens = true;
  RETURN_IF_ERROR(fields.Read("add_special_tokens", adds_special_tokens));
  const text::EncodeOptions options = EncodeOptionsFor(adds_special_tokens);

  std::vector<Prompt> prompts;
  if (value->is_string()) {
    ASSIGN_OR_RETURN(prompts.emplace_back(),
                     PromptOfText(value->as_string(), "prompt", options, context));
    return prompts;
  }
  if (!value->is_array() || value->as_array().empty()) {
    return WrongValue("prompt", "text, token ids, or a non-empty array of either", *value);
  }
  if (value->as_array().front().is_number()) {
    ASSIGN_OR_RETURN(prompts.emplace_back(), PromptOfTokens(*value, "prompt", context));
    return prompts;
  }
  if (std::ssize(value->as_array()) > limits::kMaxPrompts) {
    return InvalidArgument("prompt: expected at most {} prompts, got {}", limits::kMaxPrompts,
                           value->as_array().size());
  }
  for (const Json& item : value->as_array()) {
    const std::string field = fmt::format("prompt[{}]", prompts.size());
    if (item.is_string()) {
      ASSIGN_OR_RETURN(prompts.emplace_back(),
                       PromptOfText(item.as_string(), field, options, context));
    } else {
      ASSIGN_OR_RETURN(prompts.emplace_back(), PromptOfTokens(item, field, context));
    }
  }
  return prompts;
}

// vLLM's truncate_prompt_tokens: keep so many tokens from the end; -1 as many as the model takes.
absl::Status TruncatePrompt(const Fields& fields, const ApiContext& context, Prompt& prompt) {
  if (fields.Find("truncate_prompt_tokens") == nullptr) return absl::OkStatus();
  int32_t kept = 0;
  RETURN_IF_ERROR(fields.Read("truncate_prompt_tokens", kept));
  if (kept == -1) kept = context.model.limits.max_model_len - 1;
  if (kept < 1)
    return InvalidArgument("truncate_prompt_tokens: expected -1 or at least 1, got {}", kept);
  if (std::ssize(prompt.tokens) > kept) {
    prompt.tokens.erase(prompt.tokens.begin(), prompt.tokens.end() - kept);
    prompt.text = context.tokenizer.Decode(prompt.tokens, text::SpecialTokensInOutput::kKept);
  }
  return absl::OkStatus();
}

// One request per prompt from the one that holds what they share; all of them valid.
absl::Status AddRequests(const engine::GenerateRequest& common, std::vector<Prompt> prompts,
                         const ApiContext& context, GenerationCall& call) {
  if (common.n > 0 && std::ssize(prompts) > limits::kMaxChoices / common.n) {
    return InvalidArgument(
        "n: expected n times the number of prompts ({}) to be at most {}, got n = {}",
        prompts.size(), limits::kMaxChoices, common.n);
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    engine::GenerateRequest request = common;
    request.prompt = std::move(prompts[i].tokens);
    if (prompts.size() > 1) request.request_id = fmt::format("{}-{}", common.request_id, i);
    RETURN_IF_ERROR(engine::Validate(request, context.model.limits));
    call.requests.push_back(std::move(request));
  }
  return absl::OkStatus();
}

engine::GenerateRequest StartFromDefaults(const std::string& request_id,
                                          const ApiContext& context) {
  engine::GenerateRequest request = context.model.defaults;
  request.request_id = request_id;
  return request;
}

}  // namespace

absl::Status CheckModelName(const std::string& name, const ModelInfo& model) {
  const bool is_served = name.empty() || name == model.limits.model_name ||
                         std::find(model.other_names.begin(), model.other_names.end(), name) !=
                             model.other_names.end();
  if (is_served) return absl::OkStatus();
  const std::string expected = fmt::format("'{}'", model.limits.model_name);
  return NotFound("{}", Message(WrongValue("model", expected, Json(name))));
}

absl::Status CheckModel(const Fields& fields, const ModelInfo& model) {
  std::string name;
  RETURN_IF_ERROR(fields.Read("model", name));
  return CheckModelName(name, model);
}

absl::StatusOr<GenerationCall> ParseCompletion(const Json& body, const std::string& request_id,
                                               const ApiContext& context) {
  ASSIGN_OR_RETURN(const Fields fields, Fields::Of(body));
  RETURN_IF_ERROR(CheckModel(fields, context.model));
  GenerationCall call{.face = Face::kCompletion};
  engine::GenerateRequest common = StartFromDefaults(request_id, context);
  RETURN_IF_ERROR(ReadCommonFields(fields, call, common));
  RETURN_IF_ERROR(ReadTimeout(fields, context.clock, common));
  common.max_tokens = kCompletionMaxTokens;
  RETURN_IF_ERROR(fields.Read("max_tokens", common.max_tokens));
  RETURN_IF_ERROR(fields.Read("logprobs", call.num_top_logprobs));
  common.logprobs = call.num_top_logprobs;
  bool echo = false;
  RETURN_IF_ERROR(fields.Read("echo", echo));

  ASSIGN_OR_RETURN(std::vector<Prompt> prompts, ReadPrompts(fields, context));
  for (Prompt& prompt : prompts) RETURN_IF_ERROR(TruncatePrompt(fields, context, prompt));
  if (echo) {
    // The prompt's own log-probabilities come with an echo; a call that draws nothing is all about
    // them.
    const int32_t scores = common.max_tokens == 0 ? std::max(0, common.logprobs) : common.logprobs;
    common.prompt_logprobs = std::max(common.prompt_logprobs, scores);
    for (Prompt& prompt : prompts) call.echoes.push_back(std::move(prompt.text));
  }
  RETURN_IF_ERROR(AddRequests(common, std::move(prompts), context, call));
  return call;
}

absl::StatusOr<GenerationCall> ParseChat(const Json& body, const std::string& request_id,
                                         const ApiContext& context) {
  ASSIGN_OR_RETURN(const Fields fields, Fields::Of(body));
  RETURN_IF_ERROR(CheckModel(fields, context.model));
  GenerationCall call{.face = Face::kChat};
  engine::GenerateRequest common = StartFromDefaults(request_id, context);
  RETURN_IF_ERROR(ReadCommonFields(fields, call, common));
  RETURN_IF_ERROR(ReadTimeout(fields, context.clock, common));
  bool logprobs = false;
  int32_t num_top = 0;
  RETURN_IF_ERROR(fields.Read("logprobs", logprobs));
  RETURN_IF_ERROR(fields.Read("top_logprobs", num_top));
  const int32_t most = context.model.limits.max_logprobs;
  if (num_top < 0 || num_top > most) {
    return InvalidArgument("top_logprobs: expected 0 to {}, got {}", most, num_top);
  }
  if (num_top > 0 && !logprobs) {
    return InvalidArgument("top_logprobs: expected it only together with logprobs, got {}",
                           num_top);
  }
  if (logprobs) call.num_top_logprobs = common.logprobs = num_top;

  Prompt prompt;
  ASSIGN_OR_RETURN(prompt.tokens, TokenizeChat(fields, context));
  RETURN_IF_ERROR(TruncatePrompt(fields, context, prompt));
  // As long as the model can, unless said; max_completion_tokens is the newer name. A prompt that
  // leaves no room is refused by its length.
  const int64_t room = context.model.limits.max_model_len - std::ssize(prompt.tokens);
  common.max_tokens = static_cast<int32_t>(std::max<int64_t>(1, room));
  RETURN_IF_ERROR(fields.Read("max_tokens", common.max_tokens));
  RETURN_IF_ERROR(fields.Read("max_completion_tokens", common.max_tokens));
  std::vector<Prompt> prompts;
  prompts.push_back(std::move(prompt));
  RETURN_IF_ERROR(AddRequests(common, std::move(prompts), context, call));
  return call;
}

}  // namespace polyreme::api
