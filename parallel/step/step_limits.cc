#include "parallel/step/step_limits.h"

#include <algorithm>

#include "parallel/base/limits.h"

namespace polyreme::step {

StepLimits LimitsOf(const StepSettings& settings) {
  // Enough for a prompt's log-probabilities to be asked for beside the running sequences' samples.
  constexpr int32_t kLeastSamples = 256;
  StepLimits limits;
  // A slot that ends in one plan can be given away in the next, so running sequences are all there
  // are.
  limits.num_slots = settings.max_num_seqs;
  limits.num_blocks = settings.num_blocks;
  limits.tokens_per_block = settings.block_size;
  limits.max_step_tokens = settings.max_num_batched_tokens;
  limits.max_step_samples =
      std::min(settings.max_num_batched_tokens, std::max(settings.max_num_seqs, kLeastSamples));
  limits.max_model_len = settings.max_model_len;
  limits.vocabulary = settings.vocabulary;
  limits.max_steps_in_flight = settings.stages + 1;
  return limits;
}

int64_t MostBlocks(const StepLimits& limits) {
  const int64_t per_sequence =
      (int64_t{limits.max_model_len} + limits.tokens_per_block - 1) / limits.tokens_per_block;
  return std::min<int64_t>(per_sequence * limits.num_slots, limits::kMaxBlocks);
}

}  // namespace polyreme::step
