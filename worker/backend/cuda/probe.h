// A kernel that does nothing but read.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace polyreme::cuda {

// Reads bytes (a multiple of 16, at an address that is one) once, and writes next to nothing to
// sink [1]. sm_70 and newer.
cudaError_t ReadMemory(cudaStream_t stream, const void* data, int64_t bytes, int multiprocessors,
                       uint32_t* sink);

}  // namespace polyreme::cuda
