// Many small pieces that came to the GPU in one copy, each brought to its place.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace polyreme::cuda {

// One piece: `bytes` at `offset` of the staged memory go to `to`. offset and `to` are equal modulo
// 16.
struct UploadEntry {
  void* to = nullptr;
  uint32_t offset = 0;
  uint32_t bytes = 0;
};

// staged and entries: device memory, staged 16-byte aligned. Pieces do not overlap at their places.
// max_bytes: of the largest piece, at least 1.
cudaError_t ScatterUploads(cudaStream_t stream, const void* staged, const UploadEntry* entries,
                           int num_entries, int64_t max_bytes);

}  // namespace polyreme::cuda
