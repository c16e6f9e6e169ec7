// Whole steps of a real model against the bytes they have to move: decode at several batches, and
// prompts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/base/status.h"

namespace polyreme::bench {

struct BenchStepOptions {
  std::string model;            // a checkpoint's directory
  int32_t tensor_parallel = 1;  // ranks are threads of this process
  int32_t pipeline_parallel = 1;
  int32_t num_threads = 1;  // of each rank
  std::vector<int32_t> batches = {1, 2, 4, 8, 16, 32, 64};
  int32_t context = 128;   // prompt tokens of each sequence before decoding
  int32_t num_steps = 64;  // decode steps measured
};

// *table gets the ceilings of this run, then per batch: microseconds of a step, tokens per second,
// and the step's share of its roofline, max(weights and cache read / read rate, operations / FMA
// rate); then the prompt. All ranks' threads count for the ceilings. InvalidArgument for sizes that
// the model cannot hold.
absl::Status RunBenchStep(const BenchStepOptions& options, std::string* table);

}  // namespace polyreme::bench
