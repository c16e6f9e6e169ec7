// `bench serve`: requests that arrive by a rate, by a trace, or as fast as a concurrency lets them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "deploy/bench/load_bench.h"
#include "deploy/bench/report.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

struct ServeBenchOptions {
  LoadBenchOptions load;
  std::vector<PromptEntry> prompts;
  bool is_trace = false;        // each prompt has its own time
  double request_rate = 0;      // per second; infinite: all at once, or whenever there is room
  double burstiness = 1;        // 1: Poisson; infinite: constant gaps
  int32_t max_concurrency = 0;  // 0: no bound but the client's own
  uint64_t seed = 0;
  int32_t rounds = 1;
  std::vector<std::string> percentile_metrics = {"ttft", "tpot", "itl"};  // and e2el
  std::vector<double> percentiles = {99};
};

// The report has title, one point, table, figures, notes and requests; conditions and settings are
// the caller's. Errors as LoadBench::Prepare.
absl::StatusOr<Report> RunServeBench(const ServeBenchOptions& options);

}  // namespace polyreme::bench
