#include "coordinator/api/answer.h"

#include <algorithm>
#include <utility>

#include "coordinator/api/api_error.h"

namespace polyreme::api {
namespace {

Json StopReason(const engine::OutputPiece& piece) {
  if (piece.stop_string.has_value()) return *piece.stop_string;
  if (piece.stop_token.has_value()) return *piece.stop_token;
  return nullptr;
}

template <class T>
void AppendTo(std::vector<T>& all, std::vector<T>& more) {
  all.insert(all.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
}

}  // namespace

Answer::Answer(const GenerationCall& call, const std::string& http_id, const ApiContext& context)
    : call_(call),
      context_(context),
      names_(context.tokenizer,
             call.names_tokens_by_id ? TokenNames::Style::kId : TokenNames::Style::kText),
      id_((call.face == Face::kChat ? "chatcmpl-" : "cmpl-") + http_id),
      created_(absl::ToUnixSeconds(context.clock.Now())),
      choices_per_prompt_(static_cast<size_t>(call.requests.front().n)),
      prompts_(call.requests.size()),
      choices_(call.requests.size() * choices_per_prompt_) {}

void Answer::Add(size_t prompt, engine::OutputPiece piece, std::string& events) {
  const size_t index = prompt * choices_per_prompt_ + static_cast<size_t>(piece.choice);
  CHECK(index < choices_.size(), "piece of choice {} of prompt {}", piece.choice, prompt);
  PromptState& state = prompts_[prompt];
  if (!piece.prompt_scores.empty()) state.scores = std::move(piece.prompt_scores);
  state.num_cached_tokens = std::max<int64_t>(state.num_cached_tokens, piece.num_cached_tokens);

  Choice& choice = choices_[index];
  choice.num_tokens += std::ssize(piece.tokens);
  if (call_.delivery == Delivery::kStream) return AppendEvents(prompt, index, piece, events);
  choice.text += piece.text;
  AppendTo(choice.tokens, piece.tokens);
  AppendTo(choice.scores, piece.scores);
  if (piece.finish == engine::FinishReason::kNone) return;
  choice.finish = piece.finish;
  choice.stop_reason = StopReason(piece);
  // Said to the client as it is, not hidden as an internal error: it is about this choice's own
  // numbers.
  if (!piece.error.ok()) choice.error = DataLoss("{}", Message(piece.error));
}

void Answer::AppendEvents(size_t prompt, size_t index, const engine::OutputPiece& piece,
                          std::string& events) {
  Choice& choice = choices_[index];
  if (!piece.error.ok()) {
    events += ServerSentEvent(Json::MakeObject({{"error", ErrorJson(500, Message(piece.error))}}));
    return;
  }
  const bool begins = !choice.has_begun;
  if (begins && call_.face == Face::kChat) {
    Json first =
        Json::MakeObject({{"index", static_cast<int64_t>(index)},
                          {"delta", Json::MakeObject({{"role", "assistant"}, {"content", ""}})},
                          {"logprobs", nullptr},
                          {"finish_reason", nullptr}});
    Json event = Envelope(ChunkObject(), Json(Json::Array{std::move(first)}));
    if (call_.returns_token_ids)
      event.Set("prompt_token_ids", TokenIdsJson(call_.requests[prompt].prompt));
    events += ServerSentEvent(event);
    choice.has_begun = true;
  }
  const bool says_nothing = piece.text.empty() && piece.finish == engine::FinishReason::kNone &&
                            (piece.scores.empty() || call_.num_top_logprobs < 0) &&
                            !(call_.returns_token_ids && !piece.tokens.empty()) &&
                            !(begins && !call_.echoes.empty());
  if (says_nothing) return;
  events += ServerSentEvent(
      Envelope(ChunkObject(), Json(Json::Array{ChunkChoice(prompt, index, piece)})));
  choice.has_begun = true;
}

Json Answer::ChunkChoice(size_t prompt, size_t index, const engine::OutputPiece& piece) {
  Choice& choice = choices_[index];
  const bool begins_with_echo = !choice.has_begun && !call_.echoes.empty();
  Json json = Json::MakeObject({{"index", static_cast<int64_t>(index)}});
  if (call_.face == Face::kChat) {
    json.Set("delta", Json::MakeObject({{"content", piece.text}}));
  } else {
    json.Set("text", begins_with_echo ? call_.echoes[prompt] + piece.text : piece.text);
  }
  json.Set("logprobs",
           Logprobs(prompt, begins_with_echo ? PromptScores::kIncluded : PromptScores::kLeftOut,
                    piece.scores, choice.text_offset));
  json.Set("finish_reason", FinishReasonJson(piece.finish));
  json.Set("stop_reason", StopReason(piece));
  if (call_.returns_token_ids) {
    if (!choice.has_begun && call_.face == Face::kCompletion) {
      json.Set("prompt_token_ids", TokenIdsJson(call_.requests[prompt].prompt));
    }
    json.Set("token_ids", TokenIdsJson(piece.tokens));
  }
  return json;
}

void Answer::AppendEnd(std::string& events) const {
  if (call_.usage != UsageInStream::kNone) {
    Json last = Envelope(ChunkObject(), Json::MakeArray());
    last.Set("usage", UsageJson(CountUsage()));
    events += ServerSentEvent(last);
  }
  events += kLastEvent;
}

absl::StatusOr<Json> Answer::Whole() const {
  Json choices = Json::MakeArray();
  for (size_t i = 0; i < choices_.size(); ++i) {
    RETURN_IF_ERROR(choices_[i].error);
    choices.Append(WholeChoice(i / choices_per_prompt_, i));
  }
  Json answer = Envelope(call_.face == Face::kChat ? "chat.completion" : "text_completion",
                         std::move(choices));
  answer.Set("usage", UsageJson(CountUsage()));
  if (call_.face == Face::kChat && call_.shows_prompt_logprobs) {
    answer.Set("prompt_logprobs", PromptLogprobs(prompts_.front().scores, names_));
  }
  if (call_.face == Face::kChat && call_.returns_token_ids) {
    answer.Set("prompt_token_ids", TokenIdsJson(call_.requests.front().prompt));
  }
  return answer;
}

Json Answer::WholeChoice(size_t prompt, size_t index) const {
  const Choice& choice = choices_[index];
  Json json = Json::MakeObject({{"index", static_cast<int64_t>(index)}});
  const bool echoes = !call_.echoes.empty();
  if (call_.face == Face::kChat) {
    json.Set(
        "message",
        Json::MakeObject({{"role", "assistant"}, {"content", choice.text}, {"refusal", nullptr}}));
  } else {
    json.Set("text", echoes ? call_.echoes[prompt] + choice.text : choice.text);
  }
  int64_t offset = 0;
  json.Set("logprobs", Logprobs(prompt, echoes ? PromptScores::kIncluded : PromptScores::kLeftOut,
                                choice.scores, offset));
  json.Set("finish_reason", FinishReasonJson(choice.finish));
  json.Set("stop_reason", choice.stop_reason);
  if (call_.face == Face::kCompletion && call_.shows_prompt_logprobs) {
    json.Set("prompt_logprobs", PromptLogprobs(prompts_[prompt].scores, names_));
  }
  if (call_.returns_token_ids) {
    if (call_.face == Face::kCompletion) {
      json.Set("prompt_token_ids", TokenIdsJson(call_.requests[prompt].prompt));
    }
    json.Set("token_ids", TokenIdsJson(choice.tokens));
  }
  return json;
}

Json Answer::Logprobs(size_t prompt, PromptScores of_prompt,
                      std::span<const engine::TokenScore> scores, int64_t& offset) const {
  if (call_.num_top_logprobs < 0) return nullptr;
  if (call_.face == Face::kChat) return ChatLogprobs(scores, call_.num_top_logprobs, names_);
  std::vector<ScoredToken> tokens;
  if (of_prompt == PromptScores::kIncluded) {
    tokens.push_back({.token = call_.requests[prompt].prompt.front()});
    for (const engine::TokenScore& score : prompts_[prompt].scores)
      tokens.push_back({score.token, &score});
  }
  for (const engine::TokenScore& score : scores) tokens.push_back({score.token, &score});
  return CompletionLogprobs(tokens, call_.num_top_logprobs, names_, offset);
}

Json Answer::Envelope(std::string_view object, Json choices) const {
  Json json = Json::MakeObject({{"id", id_},
                                {"object", object},
                                {"created", created_},
                                {"model", context_.model.limits.model_name},
                                {"system_fingerprint", "polyreme-" + context_.model.version},
                                {"choices", std::move(choices)}});
  if (call_.delivery == Delivery::kStream && call_.usage == UsageInStream::kEachChunk) {
    json.Set("usage", UsageJson(CountUsage()));
  } else if (call_.delivery == Delivery::kStream && call_.usage == UsageInStream::kLast) {
    json.Set("usage", nullptr);
  }
  return json;
}

Usage Answer::CountUsage() const {
  Usage usage;
  for (const engine::GenerateRequest& request : call_.requests)
    usage.prompt_tokens += std::ssize(request.prompt);
  for (const PromptState& prompt : prompts_) usage.cached_tokens += prompt.num_cached_tokens;
  for (const Choice& choice : choices_) usage.completion_tokens += choice.num_tokens;
  return usage;
}

std::string_view Answer::ChunkObject() const {
  return call_.face == Face::kChat ? "chat.completion.chunk" : "text_completion";
}

}  // namespace polyreme::api
