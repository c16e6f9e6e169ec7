#include "coordinator/api/proto_request.h"

#include <algorithm>

#include "coordinator/api/chat_prompt.h"
#include "coordinator/api/fields.h"
#include "coordinator/api/openai_request.h"
#include "coordinator/text/tokenizer.h"
#include "parallel/base/json.h"
#include "proto/api.pb.h"

namespace polyreme::api {
namespace {

constexpr int32_t kDefaultMaxTokens = 16;

// A chat takes the way that chats over HTTP take, as the JSON they would have.
absl::StatusOr<std::vector<TokenId>> ChatTokens(const v1::Prompt& prompt,
                                                const ApiContext& context) {
  Json messages = Json::MakeArray();
  for (const v1::Message& message : prompt.chat().messages()) {
    messages.Append(Json::MakeObject({{"role", message.role()}, {"content", message.content()}}));
  }
  Json body = Json::MakeObject({{"messages", std::move(messages)}});
  if (prompt.chat().continue_final_message()) {
    body.Set("continue_final_message", true).Set("add_generation_prompt", false);
  }
  if (prompt.has_add_special_tokens()) body.Set("add_special_tokens", prompt.add_special_tokens());
  ASSIGN_OR_RETURN(const Fields fields, Fields::Of(body));
  return TokenizeChat(fields, context);
}

template <class T, class Proto>
void CopyScores(const std::vector<T>& scores, Proto* out) {
  for (const T& score : scores) {
    v1::TokenScore& copy = *out->Add();
    copy.set_token(score.token);
    copy.set_logprob(score.logprob);
    copy.set_rank(score.rank);
    for (const step::TokenLogprob& likely : score.top) {
      v1::TokenLogprob& top = *copy.add_top();
      top.set_token(likely.token);
      top.set_logprob(likely.logprob);
    }
  }
}

v1::FinishReason ToProto(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kNone:
      return v1::FINISH_REASON_NONE;
    case engine::FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case engine::FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case engine::FinishReason::kAbort:
      return v1::FINISH_REASON_ABORT;
  }
  return v1::FINISH_REASON_NONE;
}

void ReadSampling(const v1::GenerateRequest& from, engine::GenerateRequest& to) {
  if (from.has_n()) to.n = from.n();
  if (from.has_min_tokens()) to.min_tokens = from.min_tokens();
  if (from.has_ignore_eos()) to.ignore_eos = from.ignore_eos();
  to.stop_token_ids.assign(from.stop_token_ids().begin(), from.stop_token_ids().end());
  to.stop.assign(from.stop().begin(), from.stop().end());
  if (from.has_include_stop_str_in_output()) {
    to.include_stop_str_in_output = from.include_stop_str_in_output();
  }
  if (from.has_skip_special_tokens()) to.skip_special_tokens = from.skip_special_tokens();
  if (from.has_temperature()) to.temperature = from.temperature();
  if (from.has_top_k()) to.top_k = from.top_k();
  if (from.has_top_p()) to.top_p = from.top_p();
  if (from.has_min_p()) to.min_p = from.min_p();
  if (from.has_repetition_penalty()) to.repetition_penalty = from.repetition_penalty();
  if (from.has_presence_penalty()) to.presence_penalty = from.presence_penalty();
  if (from.has_frequency_penalty()) to.frequency_penalty = from.frequency_penalty();
  for (const v1::LogitBias& bias : from.logit_bias()) {
    to.logit_bias.emplace_back(bias.token(), bias.bias());
  }
  to.allowed_token_ids.assign(from.allowed_token_ids().begin(), from.allowed_token_ids().end());
  if (from.has_seed()) to.seed = from.seed();
  if (from.has_logprobs()) to.logprobs = from.logprobs();
  if (from.has_prompt_logprobs()) to.prompt_logprobs = from.prompt_logprobs();
  if (from.has_priority()) to.priority = from.priority();
}

}  // namespace

absl::StatusOr<std::vector<TokenId>> PromptTokens(const v1::Prompt& prompt,
                                                  const ApiContext& context) {
  switch (prompt.form_case()) {
    case v1::Prompt::kText: {
      text::EncodeOptions options;
      if (prompt.has_add_special_tokens() && !prompt.add_special_tokens()) {
        options.around = text::SpecialTokensAround::kLeftOut;
      }
      absl::StatusOr<std::vector<TokenId>> tokens =
          context.tokenizer.Encode(prompt.text(), options);
      if (!tokens.ok()) return Annotate(tokens.status(), "prompt.text");
      return tokens;
    }
    case v1::Prompt::kTokens:
      return std::vector<TokenId>(prompt.tokens().ids().begin(), prompt.tokens().ids().end());
    case v1::Prompt::kChat:
      return ChatTokens(prompt, context);
    case v1::Prompt::FORM_NOT_SET:
      break;
  }
  return InvalidArgument("prompt: expected text, tokens or chat, got none");
}

absl::StatusOr<engine::GenerateRequest> FromProto(const v1::GenerateRequest& from,
                                                  const ApiContext& context) {
  RETURN_IF_ERROR(CheckModelName(from.model(), context.model));
  engine::GenerateRequest to = context.model.defaults;
  to.request_id = from.request_id();
  ReadSampling(from, to);
  ASSIGN_OR_RETURN(to.prompt, PromptTokens(from.prompt(), context));
  to.max_tokens = kDefaultMaxTokens;
  if (from.prompt().has_chat()) {
    const int64_t room = context.model.limits.max_model_len - std::ssize(to.prompt);
    to.max_tokens = static_cast<int32_t>(std::max<int64_t>(1, room));
  }
  if (from.has_max_tokens()) to.max_tokens = from.max_tokens();
  RETURN_IF_ERROR(engine::Validate(to, context.model.limits));
  return to;
}

void ToProto(const engine::OutputPiece& piece, v1::GenerateReply& reply) {
  reply.set_choice(piece.choice);
  reply.set_text(piece.text);
  reply.mutable_token_ids()->Add(piece.tokens.begin(), piece.tokens.end());
  CopyScores(piece.scores, reply.mutable_scores());
  CopyScores(piece.prompt_scores, reply.mutable_prompt_scores());
  reply.set_finish_reason(ToProto(piece.finish));
  if (piece.stop_string.has_value()) reply.set_stop_string(*piece.stop_string);
  if (piece.stop_token.has_value()) reply.set_stop_token(*piece.stop_token);
  if (!piece.error.ok()) reply.set_error(Message(piece.error));
  reply.set_num_cached_tokens(piece.num_cached_tokens);
}

}  // namespace polyreme::api
