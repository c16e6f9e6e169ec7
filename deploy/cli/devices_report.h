// What `polyreme devices` prints, as text and as JSON.
#pragma once

#include <string>
#include <vector>

#include "parallel/base/json.h"
#include "worker/backend/cuda/plugin.h"

namespace polyreme::cli {

struct DevicesReport {
  cuda::GpuSystem system;
  // By place in system.gpus; empty: not measured.
  std::vector<cuda::GpuMeasurement> measurements;
  std::vector<comm::AllReduceTiming> all_reduce;  // over all GPUs; empty: not measured, or one GPU
};

// Tables as nvidia-smi and its topo name things: GPUs, links between each pair, then times.
std::string DevicesText(const DevicesReport& report);
// {"driver", "cuda", "nccl", "cublas", "gpus": [...], "links": [...], "all_reduce": [...]}; rates
// in bytes and operations per second, times in seconds.
Json DevicesJson(const DevicesReport& report);

}  // namespace polyreme::cli
