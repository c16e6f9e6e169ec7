// How fast very many requests are worked off when all are there at once: the real scheduler and
// real workers, without text, streams and HTTP.
#pragma once

#include <cstdint>
#include <string>

#include "deploy/bench/bench_cluster.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

struct BenchThroughputOptions {
  ClusterOptions cluster;
  int32_t num_prompts = 256;
  int32_t input_tokens = 1024;   // of each prompt, random
  int32_t output_tokens = 1024;  // drawn for each, whatever they are
  int32_t max_num_seqs = 256;    // running at once
  uint64_t seed = 1;             // of the prompts
};

struct ThroughputResult {
  double seconds = 0;  // from the first plan to the last result
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  int64_t steps = 0;
  int64_t preemptions = 0;
  int32_t num_blocks = 0;
};

// *result may be null. *table gets the ceilings of this run, output and total tokens per second,
// and their share of the offline roofline. InvalidArgument for sizes that the model cannot hold;
// ResourceExhausted when one request alone does not fit.
absl::Status RunBenchThroughput(const BenchThroughputOptions& options, std::string* table,
                                ThroughputResult* result);

}  // namespace polyreme::bench
