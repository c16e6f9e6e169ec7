// From what a user sets to what a step may ask for: one reading for coordinator, workers and plans.
#pragma once

#include <cstdint>

#include "parallel/step/step_plan.h"

namespace polyreme::step {

struct StepSettings {
  int32_t max_num_seqs = 256;
  int32_t max_num_batched_tokens = 0;
  int32_t block_size = 16;
  int32_t max_model_len = 0;
  int32_t vocabulary = 0;
  int32_t stages = 1;
  int32_t num_blocks = 0;
};

StepLimits LimitsOf(const StepSettings& settings);
// Blocks of the cache that so many sequences of the full context could fill; more are never needed.
int64_t MostBlocks(const StepLimits& limits);

}  // namespace polyreme::step
