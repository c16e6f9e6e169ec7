// How fast the ops are, against what this machine could do at best: measured in the same run, with
// the same threads.
#pragma once

#include <cstdint>
#include <string>

#include "deploy/bench/text_table.h"
#include "parallel/base/status.h"
#include "parallel/plan/model_spec.h"
#include "worker/backend/backend.h"

namespace polyreme::bench {

struct BenchOpsOptions {
  plan::ModelSpec model;  // only its sizes and storage type matter; weights are made up
  int32_t num_threads = 1;
  std::string device = "cpu";  // a backend's name; on a GPU ops are replayed as recorded graphs
  backend::BackendOptions backend = {};  // num_threads is set here
  int32_t shards = 1;                    // sizes of one of so many
};

// The sizes of the embedded demo model, for when no model is named.
plan::ModelSpec DemoModelSizes();

// Measures the machine's rates, then each product of the model, its attention and its norms at
// several numbers of tokens. *table gets one line per op with its share of the roofline, max(bytes
// / read rate, operations / their rate). Medians; some seconds in all. *rows,
// if not null, gets the same figures. ResourceExhausted when
// memory is short; InvalidArgument for shards that do not divide the sizes.
absl::Status RunBenchOps(const BenchOpsOptions& options, std::string* table,
                         TextTable* rows = nullptr);

}  // namespace polyreme::bench
