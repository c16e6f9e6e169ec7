// What the sampler is given: logits, and per sample how to draw.
//
// Order of treatment of a row of logits (as vLLM's): log-probabilities are taken of the raw logits;
// then bias and bans; repetition, presence and frequency penalties; temperature; top-k, top-p,
// min-p; then the largest of logit / temperature + Gumbel noise, the noise a function of (seed,
// choice, position, token id) only, so that the same token is drawn on each layout and in any
// company. Temperature 0 takes the largest, lowest id on a tie.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "parallel/tensor/tensor.h"

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

// S samples. Everything is device memory except `specs` (both sides; the same values).
struct SampleBatch {
  int32_t num_samples = 0;  // S
  int32_t vocabulary = 0;   // true size; columns beyond it are padding and never read
  // [shards, S, V] float32 as all-gathered: shard s holds vocabulary rows [s V, (s + 1) V).
  ConstTensorView logits;
  const SampleSpec* specs = nullptr;       // [S]
  const SampleSpec* host_specs = nullptr;  // [S]
  const int32_t* bias_tokens = nullptr;
  const float* bias_values = nullptr;
  const int32_t* allowed_tokens = nullptr;
  // [slots, vocabulary] uint32: bit 31 set if the token is in the prompt, the rest counts it in the
  // output. A drawn token is counted by the op itself, so that in-flight tokens count too. May be
  // null when no sample has a penalty.
  uint32_t* token_counts = nullptr;
  SampleOutput* outputs = nullptr;  // [S]
  int32_t* top_tokens = nullptr;    // [S, limits::kMaxLogprobs]
  float* top_logprobs = nullptr;    // [S, limits::kMaxLogprobs]
  TensorView workspace;             // [S, vocabulary] float32
};

}  // namespace polyreme::ops
