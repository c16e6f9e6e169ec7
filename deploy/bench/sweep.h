// `bench sweep`: the same prompts at several concurrencies, in rounds.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "deploy/bench/load_bench.h"
#include "deploy/bench/report.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

// What the machine could do at best, of this run; empty functions where it was not measured.
struct SweepRoofline {
  // Output tokens per second of `batch` sequences of `context` tokens in decode.
  std::function<double(int64_t batch, double context)> tokens_per_second;
  // Of the figure: operations and bytes of one such step, and the rates of all ranks together.
  std::function<double(int64_t batch, double context)> operations;
  std::function<double(int64_t batch, double context)> bytes;
  double bytes_per_second = 0;
  double operations_per_second = 0;
  bool known() const { return tokens_per_second != nullptr; }
};

struct SweepOptions {
  LoadBenchOptions load;
  std::vector<PromptEntry> prompts;
  std::vector<int32_t> concurrency = {1, 4, 8, 16, 32, 64};
  // The first so many of the prompts at each concurrency, one number for each; empty: all.
  std::vector<int32_t> num_prompts;
  int32_t rounds = 3;
  SweepRoofline roofline;
};

// Whole rounds one after another, so that an interrupt leaves complete ones. The report has title,
// points, table, figures, notes and requests; conditions and settings are the caller's. Errors as
// LoadBench::Prepare.
absl::StatusOr<Report> RunSweep(const SweepOptions& options);

}  // namespace polyreme::bench
