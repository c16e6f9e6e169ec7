// Which GPU a rank computes on. No CUDA here: from descriptions alone.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/types/span.h"
#include "parallel/base/status.h"
#include "worker/backend/cuda/plugin.h"

namespace polyreme::cuda {

// The index of the GPU for rank `local_rank` of the `local_size` on this host, of those visible to
// its process (CUDA_VISIBLE_DEVICES is honoured before: it decides what is visible). One GPU each,
// by order; where exactly one is visible it is taken, because a launcher that gives each task a GPU
// of its own (Slurm's --gpus-per-task) shows each only that: whether two ranks then hold one GPU is
// seen when they meet, by GpuIdentity. allow_shared: ranks go round the GPUs. FailedPrecondition:
// no GPU, or fewer than ranks.
absl::StatusOr<int32_t> ChooseGpu(int32_t local_rank, int32_t local_size,
                                  absl::Span<const GpuDescription> gpus, bool allow_shared);

// "host/0000:1b:00.0": equal for two ranks that hold one GPU.
std::string GpuIdentity(std::string_view host, const GpuDescription& gpu);

}  // namespace polyreme::cuda
