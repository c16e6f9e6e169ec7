// What Sample (sample_kernels.h) is given; without CUDA's headers, for tests on a host.
#pragma once

#include <cstdint>

#include "worker/ops/sample_spec.h"

namespace polyreme::cuda {

// All that differs between steps lies in device memory (specs, lists, counts), so that a recorded
// step decides anew on each replay; specs of kind kSkip cost next to nothing. host_specs is not
// read. logits [shards, S, columns] float32; workspace [S, vocabulary] float32.
struct SampleArguments {
  int num_samples = 0;
  int vocabulary = 0;
  int shards = 1;
  int64_t columns = 0;  // of one shard
  const float* logits = nullptr;
  const ops::SampleSpec* specs = nullptr;
  const int32_t* bias_tokens = nullptr;
  const float* bias_values = nullptr;
  const int32_t* allowed_tokens = nullptr;
  uint32_t* token_counts = nullptr;
  ops::SampleOutput* outputs = nullptr;
  int32_t* top_tokens = nullptr;
  float* top_logprobs = nullptr;
  float* workspace = nullptr;
  void* scratch = nullptr;  // SampleScratchBytes(num_samples, vocabulary), not initialised
};

}  // namespace polyreme::cuda
