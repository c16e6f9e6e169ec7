// The nearest launches that fit where the one that was asked for does not.
#pragma once

#include <string>
#include <vector>

#include "deploy/sizing/launch_plan.h"

namespace polyreme::sizing {

struct Alternative {
  LaunchSettings settings;
  std::string change;  // "--max-model-len 16384", "4 x a100-80g-sxm4, -tp 4"
  // What it costs, to compare: per hour where every candidate has a price, else gigabytes of GPU
  // memory.
  double cost = 0;
  int64_t kv_tokens = 0;
};

struct Alternatives {
  std::vector<Alternative> launches;  // cheapest first, the smallest change first among equals
  bool by_price = false;
};

// What fits and is served, at most `most`: fewer sequences, a shorter context, smaller steps,
// another type, more of the same GPUs, other GPUs of the table. Layouts of up to 16 ranks.
Alternatives FindAlternatives(const LaunchSettings& settings, const GpuTable& table, size_t most);

// Layouts (shards, stages) of so many ranks that the model can have, shards first.
struct RankLayout {
  int32_t shards = 1;
  int32_t stages = 1;
};
std::vector<RankLayout> LayoutsOf(const plan::ModelSpec& spec, int32_t ranks);
// "-tp 2 -pp 2"
std::string FlagsOf(int32_t shards, int32_t stages);

}  // namespace polyreme::sizing
