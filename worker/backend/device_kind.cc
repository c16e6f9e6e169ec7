#include "worker/backend/device_kind.h"

#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cuda/workspace.h"

namespace polyreme::backend {
namespace {

cuda::Element ElementOf(DType dtype) {
  if (dtype == DType::kF16) return cuda::Element::kF16;
  return dtype == DType::kBF16 ? cuda::Element::kBF16 : cuda::Element::kF32;
}

}  // namespace

int64_t CpuPackedBytes(int64_t rows, int64_t cols, DType stored) {
  const int64_t num_panels = (rows + cpu::kLanes - 1) / cpu::kLanes;
  return num_panels * cpu::kLanes * cols * SizeOf(stored);
}

int64_t PackedBytes(const DeviceKind& kind, int64_t rows, int64_t cols, DType stored) {
  return kind.gpu ? cuda::PackedWeightBytes(ElementOf(kind.activations), rows, cols)
                  : CpuPackedBytes(rows, cols, stored);
}

int64_t WorkspaceBytes(const DeviceKind& kind, const ops::Workload& workload) {
  if (!kind.gpu) return 0;
  return cuda::OpsWorkspaceBytes({.choice = kind.attention,
                                  .type = ElementOf(kind.activations),
                                  .compute_capability = kind.compute_capability,
                                  .num_multiprocessors = kind.num_multiprocessors,
                                  .have_fa2 = kind.have_fa2,
                                  .have_hopper = kind.have_hopper},
                                 workload);
}

}  // namespace polyreme::backend
