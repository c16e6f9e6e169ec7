// Runs whole models by hand, without plans, sampling or gRPC: tokens in, logits out, on any layout
// of ranks as threads, on the CPU or with a GPU for each rank.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/base/status.h"
#include "parallel/plan/shard_plan.h"
#include "tests/worker/test_backends.h"

namespace polyreme::model {

// Some tokens of one sequence; logits are asked for the last of them.
struct HarnessRow {
  int32_t slot = 0;
  int32_t first_position = 0;
  std::vector<int32_t> tokens;
};
using HarnessStep = std::vector<HarnessRow>;

struct HarnessOptions {
  int32_t stages = 1;
  int32_t shards = 1;
  plan::PlanOptions plan = {};
  int32_t num_threads = 1;  // of each rank
  int32_t num_slots = 4;
  int64_t positions = 512;                // of the longest sequence
  int64_t head_chunk_samples = 3;         // small, so that tests cross chunks
  TestBackend backend = {.name = "cpu"};  // rank r has GPU r
};

// logits[step][row][token], padded rows cut off. The first error of any rank.
using HarnessLogits = std::vector<std::vector<std::vector<float>>>;
absl::StatusOr<HarnessLogits> RunModel(const std::string& directory, const HarnessOptions& options,
                                       const std::vector<HarnessStep>& steps);

// The prompt in chunks of at most `chunk` tokens, then each of `forced` as a step of its own but
// the last: the last step of the prompt and all after it ask what follows. Slot 0.
std::vector<HarnessStep> ForcedSteps(const std::vector<int32_t>& prompt,
                                     const std::vector<int32_t>& forced, size_t chunk);

}  // namespace polyreme::model
