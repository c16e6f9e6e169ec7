#include "worker/backend/cuda/gpu_choice.h"

namespace polyreme::cuda {

absl::StatusOr<int32_t> ChooseGpu(int32_t local_rank, int32_t local_size,
                                  absl::Span<const GpuDescription> gpus, bool allow_shared) {
  CHECK(0 <= local_rank && local_rank < local_size, "rank {} of {}", local_rank, local_size);
  const int32_t visible = static_cast<int32_t>(gpus.size());
  if (visible == 0) {
    return FailedPrecondition(
        "local rank {} sees no GPU: expected at least one among CUDA_VISIBLE_DEVICES", local_rank);
  }
  if (visible == 1) return gpus[0].index;
  if (local_rank < visible) return gpus[static_cast<size_t>(local_rank)].index;
  if (allow_shared) return gpus[static_cast<size_t>(local_rank % visible)].index;
  return FailedPrecondition(
      "local rank {} has no GPU: {} ranks on this host, but {} GPUs are visible; start fewer ranks "
      "here, show more GPUs (CUDA_VISIBLE_DEVICES), or pass --allow-shared-gpu",
      local_rank, local_size, visible);
}

std::string GpuIdentity(std::string_view host, const GpuDescription& gpu) {
  return fmt::format("{}/{}", host, gpu.bus_id);
}

}  // namespace polyreme::cuda
