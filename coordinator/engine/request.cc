#include "coordinator/engine/request.h"

#include <algorithm>
#include <cmath>

#include "parallel/base/limits.h"

namespace polyreme::engine {
namespace {

// Below this a temperature is zero: the largest logit wins. vLLM's epsilon.
constexpr double kGreedyBelow = 1e-5;
constexpr double kMaxTemperature = 100;
constexpr double kMaxPenalty = 2;
constexpr double kMaxRepetitionPenalty = 10;
constexpr double kMaxLogitBias = 100;

// Also false for NaN.
bool IsWithin(double value, double low, double high) {
  return value >= low && value <= high;
}

absl::Status CheckRange(const char* field, double value, double low, double high) {
  if (IsWithin(value, low, high)) return absl::OkStatus();
  return InvalidArgument("{}: expected {} to {}, got {}", field, low, high, value);
}

absl::Status CheckTokens(const char* field, const std::vector<TokenId>& tokens,
                         const ModelLimits& limits) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < limits.vocabulary) continue;
    return InvalidArgument("{}[{}]: expected a token id from 0 to {}, got {}", field, i,
                           limits.vocabulary - 1, tokens[i]);
  }
  return absl::OkStatus();
}

absl::Status CheckLengths(const GenerateRequest& r, const ModelLimits& limits) {
  if (r.prompt.empty()) return InvalidArgument("prompt: expected at least one token, got none");
  RETURN_IF_ERROR(CheckTokens("prompt", r.prompt, limits));
  const int32_t least = r.prompt_logprobs >= 0 ? 0 : 1;
  if (r.max_tokens < least) {
    return InvalidArgument("max_tokens: expected at least {}, got {}", least, r.max_tokens);
  }
  if (r.min_tokens < 0 || r.min_tokens > r.max_tokens) {
    return InvalidArgument("min_tokens: expected 0 to max_tokens, which is {}, got {}",
                           r.max_tokens, r.min_tokens);
  }
  const int64_t num_prompt = std::ssize(r.prompt);
  const int64_t total = num_prompt + r.max_tokens;
  if (total > limits.max_model_len) {
    return InvalidArgument(
        "This model's maximum context length is {} tokens. However, you requested {} tokens ({} in "
        "the prompt, {} in the completion). Please reduce the length of the prompt or completion.",
        limits.max_model_len, total, num_prompt, r.max_tokens);
  }
  if (r.n < 1 || r.n > limits.max_choices) {
    return InvalidArgument("n: expected 1 to {}, got {}", limits.max_choices, r.n);
  }
  return absl::OkStatus();
}

absl::Status CheckStops(const GenerateRequest& r, const ModelLimits& limits) {
  RETURN_IF_ERROR(CheckTokens("stop_token_ids", r.stop_token_ids, limits));
  // The workers hear of end-of-sequence and stop ids in one list.
  const int64_t most_ids = limits::kMaxStopTokens - std::ssize(limits.eos_tokens);
  if (std::ssize(r.stop_token_ids) > most_ids) {
    return InvalidArgument("stop_token_ids: expected at most {}, got {}", most_ids,
                           r.stop_token_ids.size());
  }
  if (std::ssize(r.stop) > limits::kMaxStopStrings) {
    return InvalidArgument("stop: expected at most {} strings, got {}", limits::kMaxStopStrings,
                           r.stop.size());
  }
  for (size_t i = 0; i < r.stop.size(); ++i) {
    const int64_t size = std::ssize(r.stop[i]);
    if (size >= 1 && size <= limits::kMaxStopStringBytes) continue;
    return InvalidArgument("stop[{}]: expected 1 to {} bytes, got {}", i,
                           limits::kMaxStopStringBytes, size);
  }
  return absl::OkStatus();
}

absl::Status CheckSampling(const GenerateRequest& r, const ModelLimits& limits) {
  RETURN_IF_ERROR(CheckRange("temperature", r.temperature, 0, kMaxTemperature));
  if (r.top_k < -1) {
    return InvalidArgument("top_k: expected -1 or 0 (off), or at least 1, got {}", r.top_k);
  }
  // As a float it must still be above zero.
  if (!(static_cast<float>(r.top_p) > 0 && r.top_p <= 1)) {
    return InvalidArgument("top_p: expected more than 0 and at most 1, got {}", r.top_p);
  }
  RETURN_IF_ERROR(CheckRange("min_p", r.min_p, 0, 1));
  RETURN_IF_ERROR(CheckRange("presence_penalty", r.presence_penalty, -kMaxPenalty, kMaxPenalty));
  RETURN_IF_ERROR(CheckRange("frequency_penalty", r.frequency_penalty, -kMaxPenalty, kMaxPenalty));
  if (!(static_cast<float>(r.repetition_penalty) > 0 &&
        r.repetition_penalty <= kMaxRepetitionPenalty)) {
    return InvalidArgument("repetition_penalty: expected more than 0 and at most {}, got {}",
                           kMaxRepetitionPenalty, r.repetition_penalty);
  }
  if (std::ssize(r.logit_bias) > limits::kMaxLogitBias) {
    return InvalidArgument("logit_bias: expected at most {} entries, got {}", limits::kMaxLogitBias,
                           r.logit_bias.size());
  }
  for (const auto& [token, bias] : r.logit_bias) {
    if (token < 0 || token >= limits.vocabulary) {
      return InvalidArgument("logit_bias: expected token ids from 0 to {}, got {}",
                             limits.vocabulary - 1, token);
    }
    if (!IsWithin(bias, -kMaxLogitBias, kMaxLogitBias)) {
      return InvalidArgument("logit_bias: expected {} to {} for token {}, got {}", -kMaxLogitBias,
                             kMaxLogitBias, token, bias);
    }
  }
  if (std::ssize(r.allowed_token_ids) > limits::kMaxAllowedTokens) {
    return InvalidArgument("allowed_token_ids: expected at most {}, got {}",
                           limits::kMaxAllowedTokens, r.allowed_token_ids.size());
  }
  return CheckTokens("allowed_token_ids", r.allowed_token_ids, limits);
}

absl::Status CheckLogprobs(const char* field, int32_t value, const ModelLimits& limits) {
  if (value >= -1 && value <= limits.max_logprobs) return absl::OkStatus();
  return InvalidArgument("{}: expected 0 to {}, got {}", field, limits.max_logprobs, value);
}

}  // namespace

absl::Status Validate(const GenerateRequest& request, const ModelLimits& limits) {
  if (request.priority != 0 && !limits.allows_priority) {
    return InvalidArgument(
        "priority: expected 0, since this server was not started with --scheduling-policy "
        "priority, got {}",
        request.priority);
  }
  RETURN_IF_ERROR(CheckLogprobs("logprobs", request.logprobs, limits));
  RETURN_IF_ERROR(CheckLogprobs("prompt_logprobs", request.prompt_logprobs, limits));
  RETURN_IF_ERROR(CheckLengths(request, limits));
  RETURN_IF_ERROR(CheckStops(request, limits));
  return CheckSampling(request, limits);
}

step::SamplingParams ToSamplingParams(const GenerateRequest& request, const ModelLimits& limits,
                                      uint64_t seed, int32_t choice) {
  step::SamplingParams params;
  params.temperature =
      request.temperature < kGreedyBelow ? 0.0f : static_cast<float>(request.temperature);
  params.top_k = request.top_k >= limits.vocabulary ? 0 : std::max(0, request.top_k);
  params.top_p = static_cast<float>(request.top_p);
  params.min_p = static_cast<float>(request.min_p);
  params.repetition_penalty = static_cast<float>(request.repetition_penalty);
  params.presence_penalty = static_cast<float>(request.presence_penalty);
  params.frequency_penalty = static_cast<float>(request.frequency_penalty);
  for (const auto& [token, bias] : request.logit_bias) {
    params.logit_bias.emplace_back(token, static_cast<float>(bias));
  }
  params.allowed_tokens = request.allowed_token_ids;
  params.seed = seed;
  params.choice = choice;
  params.min_tokens = request.min_tokens;
  if (request.min_tokens > 0) {
    if (!request.ignore_eos) params.stop_tokens = limits.eos_tokens;
    params.stop_tokens.insert(params.stop_tokens.end(), request.stop_token_ids.begin(),
                              request.stop_token_ids.end());
  }
  // One number for draws and scores; the output gives each what it asked for. The prompt is scored
  // once, by choice 0.
  params.num_logprobs =
      choice == 0 ? std::max(request.logprobs, request.prompt_logprobs) : request.logprobs;
  return params;
}

}  // namespace polyreme::engine
