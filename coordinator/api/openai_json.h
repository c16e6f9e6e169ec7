// Answers as OpenAI's and vLLM's clients read them. Pure: values in, JSON out.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/api/openai_request.h"
#include "coordinator/engine/token_stream.h"
#include "coordinator/text/tokenizer.h"
#include "parallel/base/json.h"

namespace polyreme::api {

// How tokens are written in logprobs objects.
class TokenNames {
 public:
  enum class Style { kText, kId };  // "the" or "token_id:279"
  TokenNames(const text::Tokenizer& tokenizer, Style style)
      : tokenizer_(tokenizer), style_(style) {}

  std::string Name(TokenId token) const;
  // The bytes the token stands for: part of a character, maybe.
  std::string Bytes(TokenId token) const;

 private:
  const text::Tokenizer& tokenizer_;
  const Style style_;
};

// A token of an answer; `score` is null for the first one of an echoed prompt, which nothing came
// before.
struct ScoredToken {
  TokenId token = 0;
  const engine::TokenScore* score = nullptr;
};

// {"tokens", "token_logprobs", "top_logprobs", "text_offset"}. `num_top` >= 0 per token, the drawn
// one besides. `offset` in characters: where the first token's text begins; moved to the end of the
// last one's.
Json CompletionLogprobs(std::span<const ScoredToken> tokens, int32_t num_top,
                        const TokenNames& names, int64_t& offset);
// {"content": [{"token", "logprob", "bytes", "top_logprobs"}]}
Json ChatLogprobs(std::span<const engine::TokenScore> scores, int32_t num_top,
                  const TokenNames& names);
// vLLM's prompt_logprobs: null for the first token, then {"<id>": {"logprob", "rank",
// "decoded_token"}}.
Json PromptLogprobs(std::span<const engine::TokenScore> scores, const TokenNames& names);

Json TokenIdsJson(std::span<const TokenId> tokens);

// Tokens of a call so far.
struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
};
Json UsageJson(const Usage& usage);

// null while there is no reason yet.
Json FinishReasonJson(engine::FinishReason reason);

// "data: ...\n\n". JSON escapes line ends, so that no text can end an event.
std::string ServerSentEvent(const Json& data);
inline constexpr std::string_view kLastEvent = "data: [DONE]\n\n";

}  // namespace polyreme::api
