// One sample: how to draw, and what comes back. Plain data without other headers, because kernels
// read it too (C++17, no abseil).
#pragma once

#include <cstdint>

namespace polyreme::ops {

// One sample, plain data that a device can read. Lists are slices [begin, end) of
// SampleBatch::bias_* arrays.
struct SampleSpec {
  enum class Kind : uint8_t { kDraw, kScore, kSkip };  // kSkip: padding, nothing is asked
  Kind kind = Kind::kDraw;
  bool only_listed = false;   // only tokens in the allowed list may be drawn
  int32_t slot = 0;           // row of the penalty table
  int32_t position = 0;       // in the sequence, of the token to be drawn
  int32_t target = 0;         // kScore
  int32_t num_logprobs = -1;  // as step::SamplingParams
  float temperature = 1.0f;
  int32_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  uint64_t seed = 0;
  int32_t choice = 0;
  int32_t bias_begin = 0;  // logit += bias_values[i] at bias_tokens[i]; -infinity bans (stop tokens
                           // under min_tokens)
  int32_t bias_end = 0;
  int32_t allowed_begin = 0;  // slices of allowed_tokens, with only_listed
  int32_t allowed_end = 0;
};

// What comes back per sample; `top` entries are in SampleBatch::top_*.
struct SampleOutput {
  int32_t token = 0;
  int32_t finite = 1;  // 0: a NaN or infinite raw logit; token is 0 and nothing else is set
  float logprob = 0;
  int32_t rank = 0;
};

}  // namespace polyreme::ops
