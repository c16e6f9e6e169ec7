// A device as far as the use of its memory depends on it, and what a backend allocates there, from
// sizes alone. The backends' packers and ops take their memory by these numbers; so can whoever
// plans a launch where there is no such device.
#pragma once

#include <cstdint>

#include "parallel/tensor/tensor.h"
#include "worker/backend/backend.h"
#include "worker/ops/ops.h"

namespace polyreme::backend {

// Of weights and cache, as loaded: a weight [rows, cols] stored in `stored`.
int64_t PackedBytes(const DeviceKind& kind, int64_t rows, int64_t cols, DType stored);
// Ops::WorkspaceBytes.
int64_t WorkspaceBytes(const DeviceKind& kind, const ops::Workload& workload);

// Panels of 16 outputs of the stored type (cpu/cpu_packer.h).
int64_t CpuPackedBytes(int64_t rows, int64_t cols, DType stored);

}  // namespace polyreme::backend
