// What a block of threads does together. Every function is called by all threads of the block,
// whose number is a multiple of 32 and at most 1024, and begins and ends with the shared memory
// that it uses free.
#pragma once

#include <cstdint>

namespace polyreme::cuda::sampling {

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kMaxWarps = 32;

struct Larger {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

// All threads get `op` over all values, folded in an order that depends on nothing but the number
// of threads.
template <class T, class Op>
__device__ T Fold(T value, Op op) {
  __shared__ T of_warps[kMaxWarps];
  for (int lanes = 16; lanes > 0; lanes >>= 1) {
    value = op(value, __shfl_xor_sync(kWholeWarp, value, lanes));
  }
  const int warps = static_cast<int>(blockDim.x) / 32;
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  T all = of_warps[0];
  for (int warp = 1; warp < warps; ++warp) all = op(all, of_warps[warp]);
  __syncthreads();
  return all;
}

// The sum of the values of the threads before this one.
__device__ inline uint64_t SumBefore(uint64_t value) {
  __shared__ unsigned long long of_warps[kMaxWarps];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  unsigned long long through = value;
  for (int lanes = 1; lanes < 32; lanes <<= 1) {
    const unsigned long long other = __shfl_up_sync(kWholeWarp, through, lanes);
    if (lane >= lanes) through += other;
  }
  if (lane == 31) of_warps[warp] = through;
  __syncthreads();
  unsigned long long before = through - value;
  for (int w = 0; w < warp; ++w) before += of_warps[w];
  __syncthreads();
  return before;
}

// Sorts keys[0, count), the largest first; count is a power of two.
__device__ inline void SortDescending(uint64_t* keys, int count) {
  for (int size = 2; size <= count; size <<= 1) {
    for (int stride = size >> 1; stride > 0; stride >>= 1) {
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < count / 2;
           i += static_cast<int>(blockDim.x)) {
        const int low = 2 * i - (i & (stride - 1));
        const int high = low + stride;
        const bool descending = (low & size) == 0;
        const uint64_t a = keys[low];
        const uint64_t b = keys[high];
        if ((a < b) == descending) {
          keys[low] = b;
          keys[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

// Adds to a 64-bit sum in shared memory, whose own atomics are of 32 bits.
__device__ inline void AddWide(unsigned* low, unsigned* high, uint64_t value) {
  const auto part = static_cast<unsigned>(value);
  const unsigned old = atomicAdd(low, part);
  const unsigned carried = static_cast<unsigned>(value >> 32) + (old + part < old ? 1u : 0u);
  if (carried != 0) atomicAdd(high, carried);
}

}  // namespace polyreme::cuda::sampling
