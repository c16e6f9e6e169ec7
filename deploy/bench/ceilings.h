// What this machine could do at best, measured in the same run as what is compared with it.
#pragma once

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "deploy/bench/roofline.h"
#include "parallel/base/status.h"
#include "parallel/tensor/device.h"

namespace polyreme::bench {

struct Ceilings {
  Rates rates;                     // of one rank, with all ranks at work
  double upload_bytes = 0;         // per second, from pinned host memory; 0 on CPU
  std::string operations = "FMA";  // what `rates.operations` are of
  // Hardware, date and the rates, then an empty line.
  std::string description;
};

double SecondsSince(absl::Time start);
// Median seconds of one call of `body`, over rounds of some milliseconds.
double MedianSeconds(absl::FunctionRef<void()> body);

// The CPU's, with ranks * num_threads threads: reads a buffer of `bytes` (less if memory is short),
// then multiplies and adds in registers. ResourceExhausted.
absl::StatusOr<Ceilings> MeasureCpuCeilings(Device& device, int32_t ranks, int32_t num_threads,
                                            int64_t bytes);
// Of the first num_gpus GPUs, one after another: the slowest's read rate, and the rate of large
// products. What the plugin and its measurement say if they fail; FailedPrecondition: fewer GPUs.
absl::StatusOr<Ceilings> MeasureGpuCeilings(int32_t num_gpus);

}  // namespace polyreme::bench
