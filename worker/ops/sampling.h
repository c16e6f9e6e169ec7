// What the sampler is given: logits, and per sample how to draw.
//
// Order of treatment of a row of logits (as vLLM's): log-probabilities are taken of the raw logits;
// then bias and bans; repetition, presence and frequency penalties; temperature; top-k, top-p,
// min-p; then the largest of logit / temperature + Gumbel noise, the noise a function of (seed,
// choice, position, token id) only, so that the same token is drawn on each layout and in any
// company. Temperature 0 takes the largest, lowest id on a tie.
#pragma once

#include <cstdint>

#include "parallel/tensor/tensor.h"
#include "worker/ops/sample_spec.h"

namespace polyreme::ops {

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
