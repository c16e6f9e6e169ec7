// Whole steps of a real model against the bytes they have to move: decode at several batches, and
// prompts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "deploy/bench/bench_cluster.h"
#include "deploy/bench/text_table.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

struct BenchStepOptions {
  ClusterOptions cluster;             // ranks are threads of this process
  std::vector<int32_t> batches = {};  // empty: 1 to 64 in powers of two
  std::vector<int32_t> prompts = {};  // empty: 512 on CPU, 2K, 8K and 32K on a GPU
  int32_t context = 128;              // tokens of each sequence before decoding
  int32_t num_steps = 64;             // decode steps measured
  int32_t num_rounds = 3;             // of prompts, after one that is not measured
};

// *table gets the ceilings of this run, then per batch: microseconds of a step (median and 99th
// percentile), tokens per second, and the step's share of its roofline; then the same of prompts.
// *rows, if not null, the same figures. InvalidArgument for sizes that the model cannot hold.
absl::Status RunBenchStep(const BenchStepOptions& options, std::string* table,
                          TextTable* rows = nullptr);

}  // namespace polyreme::bench
