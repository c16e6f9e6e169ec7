// The log-probability of each token of given texts: what is compared with another implementation's.
#pragma once

#include <cstdint>
#include <string>

#include "deploy/bench/bench_cluster.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

struct BenchScoreOptions {
  ClusterOptions cluster;
  std::string input;   // a file of lines {"tokens": [1, 2, 3]}
  std::string output;  // the file to write
};

// Writes a line for each of the input: {"logprobs": [...], "top": [[token, logprob], ...]};
// logprobs[i] is of tokens[i + 1] after those before it, top the twenty most likely after the last,
// best first. Chunks of max_num_batched_tokens, so that the prompt's path is measured. *text says
// how many were scored, how fast. InvalidArgument names the input's line.
absl::Status RunBenchScore(const BenchScoreOptions& options, std::string* text);

}  // namespace polyreme::bench
