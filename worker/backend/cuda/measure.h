// How fast the GPUs are: the plugin's answer to `polyreme devices --measure`, and the ceilings that
// benchmarks are compared with.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/base/status.h"
#include "worker/backend/cuda/plugin.h"

namespace polyreme::cuda {

// A second or two alone on that GPU, with up to 8 GiB of its memory, a quarter of what is free at
// most. InvalidArgument: no such GPU.
absl::StatusOr<GpuMeasurement> MeasureGpu(int32_t index);

// The worker's own communicator over GPUs [0, num_gpus), a thread each: times of the slowest, in
// CUDA graphs, 8 KiB to 16 MiB. InvalidArgument with fewer than two, or more than there are.
absl::StatusOr<std::vector<comm::AllReduceTiming>> MeasureAllReduce(int32_t num_gpus);

}  // namespace polyreme::cuda
