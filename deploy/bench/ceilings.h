// What this machine could do at best, measured in the same run as what is compared with it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "parallel/base/status.h"
#include "parallel/tensor/device.h"

namespace polyreme::bench {

// Per second, with a given number of threads.
struct Ceilings {
  double bytes = 0;       // read from a buffer
  double operations = 0;  // of fused multiply-adds, two each
  int64_t buffer_bytes = 0;
  std::string isa;
};

// What a piece of work cannot do without.
struct Cost {
  double bytes = 0;
  double operations = 0;
  double SecondsAtBest(const Ceilings& ceilings) const {
    return std::max(bytes / ceilings.bytes, operations / ceilings.operations);
  }
};

double SecondsSince(absl::Time start);
// Median seconds of one call of `body`, over rounds of some milliseconds.
double MedianSeconds(absl::FunctionRef<void()> body);

// Reads a buffer of `bytes` (less if memory is short), then multiplies and adds in registers.
// ResourceExhausted.
absl::StatusOr<Ceilings> MeasureCeilings(Device& device, int32_t num_threads, int64_t bytes);
// Hardware, threads, date and the two rates, then an empty line.
std::string Describe(const Ceilings& ceilings, const Device& device, int32_t num_threads);

}  // namespace polyreme::bench
