#include "coordinator/api/openai_json.h"

#include <algorithm>

namespace polyreme::api {
namespace {

int64_t CountCharacters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

Json BytesJson(std::string_view bytes) {
  Json array = Json::MakeArray();
  for (const char c : bytes) array.Append(static_cast<int>(static_cast<unsigned char>(c)));
  return array;
}

std::span<const step::TokenLogprob> FirstOf(const std::vector<step::TokenLogprob>& top,
                                            int32_t count) {
  return std::span(top).first(std::min(top.size(), static_cast<size_t>(std::max(count, 0))));
}

}  // namespace

std::string TokenNames::Bytes(TokenId token) const {
  std::string bytes;
  tokenizer_.AppendBytes(token, bytes);
  return bytes;
}

std::string TokenNames::Name(TokenId token) const {
  return style_ == Style::kId ? fmt::format("token_id:{}", token) : Bytes(token);
}

Json CompletionLogprobs(std::span<const ScoredToken> tokens, int32_t num_top,
                        const TokenNames& names, int64_t& offset) {
  Json token_names = Json::MakeArray();
  Json logprobs = Json::MakeArray();
  Json tops = Json::MakeArray();
  Json offsets = Json::MakeArray();
  for (const ScoredToken& token : tokens) {
    token_names.Append(names.Name(token.token));
    offsets.Append(offset);
    offset += CountCharacters(names.Bytes(token.token));
    if (token.score == nullptr) {
      logprobs.Append(nullptr);
      tops.Append(nullptr);
      continue;
    }
    logprobs.Append(double{token.score->logprob});
    Json top = Json::MakeObject();
    for (const step::TokenLogprob& likely : FirstOf(token.score->top, num_top)) {
      // Two ids may read the same: the likelier one stays.
      const std::string name = names.Name(likely.token);
      if (top.Find(name) == nullptr) top.Set(name, double{likely.logprob});
    }
    const std::string drawn = names.Name(token.token);
    if (top.Find(drawn) == nullptr) top.Set(drawn, double{token.score->logprob});
    tops.Append(std::move(top));
  }
  return Json::MakeObject({{"text_offset", std::move(offsets)},
                           {"token_logprobs", std::move(logprobs)},
                           {"tokens", std::move(token_names)},
                           {"top_logprobs", std::move(tops)}});
}

Json ChatLogprobs(std::span<const engine::TokenScore> scores, int32_t num_top,
                  const TokenNames& names) {
  const auto entry = [&names](TokenId token, float logprob) {
    return Json::MakeObject({{"token", names.Name(token)},
                             {"logprob", double{logprob}},
                             {"bytes", BytesJson(names.Bytes(token))}});
  };
  Json content = Json::MakeArray();
  for (const engine::TokenScore& score : scores) {
    Json top = Json::MakeArray();
    for (const step::TokenLogprob& likely : FirstOf(score.top, num_top)) {
      top.Append(entry(likely.token, likely.logprob));
    }
    content.Append(entry(score.token, score.logprob).Set("top_logprobs", std::move(top)));
  }
  return Json::MakeObject({{"content", std::move(content)}});
}

Json PromptLogprobs(std::span<const engine::TokenScore> scores, const TokenNames& names) {
  const auto entry = [&names](TokenId token, float logprob, int32_t rank) {
    return Json::MakeObject(
        {{"logprob", double{logprob}}, {"rank", rank}, {"decoded_token", names.Bytes(token)}});
  };
  Json all = Json::MakeArray();
  all.Append(nullptr);
  for (const engine::TokenScore& score : scores) {
    Json one = Json::MakeObject();
    one.Set(std::to_string(score.token), entry(score.token, score.logprob, score.rank));
    int32_t rank = 0;
    for (const step::TokenLogprob& likely : score.top) {
      ++rank;
      if (likely.token == score.token) continue;
      one.Set(std::to_string(likely.token), entry(likely.token, likely.logprob, rank));
    }
    all.Append(std::move(one));
  }
  return all;
}

Json TokenIdsJson(std::span<const TokenId> tokens) {
  Json array = Json::MakeArray();
  for (const TokenId token : tokens) array.Append(token);
  return array;
}

Json UsageJson(const Usage& usage) {
  return Json::MakeObject(
      {{"prompt_tokens", usage.prompt_tokens},
       {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
       {"completion_tokens", usage.completion_tokens},
       {"prompt_tokens_details", Json::MakeObject({{"cached_tokens", usage.cached_tokens}})}});
}

Json FinishReasonJson(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kNone:
      return nullptr;
    case engine::FinishReason::kStop:
      return "stop";
    case engine::FinishReason::kLength:
      return "length";
    case engine::FinishReason::kAbort:
      return "abort";
  }
  return nullptr;
}

std::string ServerSentEvent(const Json& data) {
  return fmt::format("data: {}\n\n", data.Dump());
}

}  // namespace polyreme::api
