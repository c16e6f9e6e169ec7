// What one step costs the coordinator, with workers that answer at once and without a model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "deploy/bench/text_table.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

struct BenchCoordinatorOptions {
  int32_t num_sequences = 256;
  std::vector<int32_t> context_tokens = {2048, 32768};
  int32_t num_steps = 1000;  // measured, in steady decode
};

// For each context: microseconds of a step's parts (Plan; the plan to bytes; the result from bytes;
// Commit) and of the engine's whole round with text, stops, streams and metrics; the plan's bytes,
// the time that merely copying them takes on this machine, and the bytes by which the heap grew per
// step. *rows, if not null, gets the same figures. InvalidArgument for sizes that are not positive.
absl::Status RunBenchCoordinator(const BenchCoordinatorOptions& options, std::string* table,
                                 TextTable* rows = nullptr);

}  // namespace polyreme::bench
