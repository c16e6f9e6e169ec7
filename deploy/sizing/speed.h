// How fast a launch can be at most, and how fast to expect it: rooflines (deploy/bench/roofline.h)
// over a GPU's rates, times the share that was measured on GPUs of its family.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "deploy/bench/roofline.h"
#include "deploy/sizing/launch_plan.h"

namespace polyreme::sizing {

// Tokens per second of one row of work.
struct Estimate {
  double at_most = 0;
  double expected = 0;  // or predicted, see Speed::measured
};

struct DecodePoint {
  int64_t context = 0;
  int64_t batch = 0;
  bool fits = false;  // the cache holds as many, and --max-num-seqs allows them
  Estimate tokens_per_second;
};
struct PromptPoint {
  int64_t tokens = 0;
  double seconds_at_most = 0;  // "at most" is of the rate: no run takes less
  double seconds_expected = 0;
  double bubble = 0;  // of the pipeline: this part of the time idle, in chunks of a step's tokens
};
struct OfflinePoint {
  int64_t input = 0;
  int64_t output = 0;
  int64_t concurrent = 0;
  bool fits = false;
  Estimate tokens_per_second;  // of output
};

struct Speed {
  bench::Rates rates;  // of one GPU
  bool rates_measured = false;
  // Whether GPUs of the family were measured; else all is predicted from `measured_gpu`.
  bool measured = false;
  std::string basis;  // where expected figures come from, in a sentence
  std::vector<DecodePoint> decode;
  std::vector<PromptPoint> prompts;
  std::vector<OfflinePoint> offline;
  // Of pipelines: bytes of the heaviest stage over those of the mean one; decode is slower by that.
  double stage_imbalance = 1;
};

// Contexts and batches of the tables.
inline constexpr int64_t kContexts[] = {2048, 8192, 32768, 65536, 131072};
inline constexpr int64_t kBatches[] = {1, 2, 4, 8, 16, 32, 64, 128, 256};

bench::Roofline RooflineOf(const LaunchSettings& settings);
bench::Rates RatesOf(const LaunchSettings& settings);
// The plan's, on a GPU.
Speed SpeedOf(const LaunchSettings& settings, const LaunchPlan& plan);
// Parts of it, for searches over many plans.
Estimate DecodeRate(const LaunchSettings& settings, int64_t batch, double context);
Estimate OfflineRate(const LaunchSettings& settings, int64_t input, int64_t output,
                     int64_t concurrent);
double PromptSecondsExpected(const LaunchSettings& settings, int64_t tokens);

}  // namespace polyreme::sizing
