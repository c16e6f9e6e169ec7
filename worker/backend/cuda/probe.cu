#include "worker/backend/cuda/probe.h"

namespace polyreme::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kLoads = 8;  // of 16 bytes, in flight per thread
constexpr int kBlocksPerMultiprocessor = 4;

__device__ __forceinline__ uint32_t Fold(uint4 value) {
  return value.x ^ value.y ^ value.z ^ value.w;
}

__global__ void __launch_bounds__(kThreads)
    ReadKernel(const uint4* __restrict__ data, int64_t count, uint32_t* sink) {
  constexpr int64_t kTile = int64_t{kThreads} * kLoads;
  uint32_t folded = 0;
  const int64_t tiles = count / kTile;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const uint4* const from = data + tile * kTile + threadIdx.x;
    uint4 values[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) values[i] = __ldcs(from + i * kThreads);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) folded ^= Fold(values[i]);
  }
  const int64_t step = int64_t{kThreads} * gridDim.x;
  for (int64_t i = tiles * kTile + int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += step) {
    folded ^= Fold(data[i]);
  }
  // Hardly ever true, which the compiler cannot know.
  if (folded == 0x9e3779b9u) *sink = folded;
}

}  // namespace

cudaError_t ReadMemory(cudaStream_t stream, const void* data, int64_t bytes, int multiprocessors,
                       uint32_t* sink) {
  const int64_t count = bytes / static_cast<int64_t>(sizeof(uint4));
  if (count == 0) return cudaSuccess;
  ReadKernel<<<kBlocksPerMultiprocessor * multiprocessors, kThreads, 0, stream>>>(
      static_cast<const uint4*>(data), count, sink);
  return cudaGetLastError();
}

}  // namespace polyreme::cuda
