// One generation request after tokenization, the same for HTTP, gRPC and batch, and the one
// validator of every face.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/step/step_plan.h"

namespace polyreme::engine {

// What the model and the cluster can do; fixed when the engine starts.
struct ModelLimits {
  std::string model_name;     // as served
  int32_t max_model_len = 0;  // prompt + output tokens of one sequence
  int32_t vocabulary = 0;     // width of the logits: every token id is below it
  std::vector<TokenId> eos_tokens;
  int32_t max_choices = 0;  // n
  int32_t max_logprobs = 0;
  bool allows_priority = false;  // --scheduling-policy priority: requests may have one but 0
};

// A prompt and how to continue it. Field names and meanings are OpenAI's and vLLM's.
struct GenerateRequest {
  std::string request_id;
  std::vector<TokenId> prompt;  // not empty
  int32_t n = 1;
  int32_t max_tokens = 0;  // output tokens per choice; 0 only with prompt_logprobs (scoring)
  int32_t min_tokens = 0;
  bool ignore_eos = false;
  std::vector<TokenId> stop_token_ids;
  std::vector<std::string> stop;  // stop strings
  bool include_stop_str_in_output = false;
  bool skip_special_tokens = true;

  double temperature = 1.0;
  int32_t top_k = 0;  // 0 or -1: off
  double top_p = 1.0;
  double min_p = 0.0;
  double repetition_penalty = 1.0;
  double presence_penalty = 0.0;
  double frequency_penalty = 0.0;
  std::vector<std::pair<TokenId, double>> logit_bias;
  std::vector<TokenId> allowed_token_ids;
  std::optional<uint64_t> seed;  // drawn by the engine when absent

  int32_t logprobs = -1;         // -1: none; k: of each drawn token and of the k most likely
  int32_t prompt_logprobs = -1;  // the same for prompt tokens

  int32_t priority = 0;  // lower runs earlier, and is preempted later
  // Then it ends with DeadlineExceeded wherever it is, and what it holds is free within a step.
  absl::Time deadline = absl::InfiniteFuture();
};

// Checks every field against `limits`. InvalidArgument: "field: expected ..., got ...". Pure; any
// thread.
absl::Status Validate(const GenerateRequest& request, const ModelLimits& limits);

// The sampling part as the workers want it, for choice number `choice`. `request` is valid; `seed`
// is the request's or drawn.
step::SamplingParams ToSamplingParams(const GenerateRequest& request, const ModelLimits& limits,
                                      uint64_t seed, int32_t choice);

}  // namespace polyreme::engine
