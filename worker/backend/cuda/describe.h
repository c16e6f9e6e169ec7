// What GPUs there are and how they are joined: the plugin's answer to `polyreme devices`, and what
// the backend asks before it takes one.
#pragma once

#include "parallel/base/status.h"
#include "worker/backend/cuda/plugin.h"

namespace polyreme::cuda {

// How many GPUs this process sees, at least one. In one sentence each with what was found and what
// is needed: NotFound, no driver or no GPU visible; FailedPrecondition, a driver that is too old or
// does not work.
absl::StatusOr<int> CountGpus();

// Takes no memory on any GPU where NVML (the driver's own library) is there; without it, link kinds
// are "?" and asking for free memory makes a context on each GPU. Opens NCCL and cuBLAS for their
// versions. Fails as CountGpus does.
absl::StatusOr<GpuSystem> DescribeSystem();

}  // namespace polyreme::cuda
