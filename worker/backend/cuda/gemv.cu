#include "worker/backend/cuda/gemv.h"

#include <type_traits>

#include "worker/backend/cuda/element_vector.cuh"

namespace polyreme::cuda {
namespace {

constexpr int kGemvWarps = 8;  // of a block
constexpr int kGemvThreads = 32 * kGemvWarps;
constexpr int kTile = 16;  // PlainProduct: outputs of a block in each direction

// Weights are read once: past L1, so that x stays there, and with the line's neighbours into L2.
__device__ __forceinline__ uint4 LoadWeights(const uint4* from) {
  uint4 v;
#if __CUDA_ARCH__ >= 800
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
#else
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
#endif
  return v;
}

// Two 16-bit elements of one word, the first in the low half.
template <class T>
__device__ __forceinline__ void Unpack(uint32_t word, float& low, float& high);
template <>
__device__ __forceinline__ void Unpack<__nv_bfloat16>(uint32_t word, float& low, float& high) {
  low = __uint_as_float(word << 16);
  high = __uint_as_float(word & 0xffff0000u);
}
template <>
__device__ __forceinline__ void Unpack<__half>(uint32_t word, float& low, float& high) {
  low = __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xffffu)));
  high = __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
}
template <class T>
__device__ __forceinline__ void Unpack(const uint4& words, float (&to)[8]) {
  Unpack<T>(words.x, to[0], to[1]);
  Unpack<T>(words.y, to[2], to[3]);
  Unpack<T>(words.z, to[4], to[5]);
  Unpack<T>(words.w, to[6], to[7]);
}

// Each warp streams kRows rows of w by direct 16-byte loads, several in flight; kWarps warps of the
// block share K between them and add up through shared memory, in their order.
//
// Measured on an H200: as fast as or faster than cublasLt for kTokens 1 and 2, and than a ring of
// asynchronous copies.
template <class T, int kTokens, int kRows, int kWarps>
__global__ void __launch_bounds__(kGemvThreads)
    GemvKernel(const T* __restrict__ x, const T* __restrict__ w, int64_t num_rows, int64_t depth,
               void* __restrict__ y, bool float_y) {
  constexpr int kGroups = kGemvWarps / kWarps;
  constexpr int kInFlight = kRows >= 2 ? 5 : 8;  // loads of each row
  __shared__ float partial[kGemvWarps][kRows * kTokens];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int part = warp % kWarps;
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kGroups + warp / kWarps) * kRows;
  const int words = static_cast<int>(depth / 8);  // 16-byte words of a row
  float sums[kRows][kTokens] = {};

  if (row < num_rows) {
    const uint4* const x_words = reinterpret_cast<const uint4*>(x) + lane;
    // Where the last group has fewer rows than kRows, the last row is read again and not stored.
    const uint4* w_words[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t clamped = row + r < num_rows ? row + r : num_rows - 1;
      w_words[r] = reinterpret_cast<const uint4*>(w) + clamped * words + lane;
    }
    const auto add = [&](const uint4(&loaded)[kRows], int step) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        float x_values[8];
        Unpack<T>(__ldg(x_words + static_cast<int64_t>(t) * words + step * 32), x_values);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float w_values[8];
          Unpack<T>(loaded[r], w_values);
#pragma unroll
          for (int i = 0; i < 8; ++i) sums[r][t] = fmaf(w_values[i], x_values[i], sums[r][t]);
        }
      }
    };
    const int steps = words / 32;
    int step = part;
    for (; step + (kInFlight - 1) * kWarps < steps; step += kInFlight * kWarps) {
      uint4 loaded[kInFlight][kRows];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          loaded[i][r] = LoadWeights(w_words[r] + (step + i * kWarps) * 32);
        }
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) add(loaded[i], step + i * kWarps);
    }
    // The rest one by one; the last step may be narrower than the warp.
    for (; step * 32 < words; step += kWarps) {
      if (step * 32 + lane >= words) break;
      uint4 loaded[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) loaded[r] = LoadWeights(w_words[r] + step * 32);
      add(loaded, step);
    }
  }

#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const float sum = WarpSum(sums[r][t]);
      if (lane == 0) partial[warp][r * kTokens + t] = sum;
    }
  }
  __syncthreads();
  constexpr int kOutputs = kGroups * kRows * kTokens;  // of the block
  static_assert(kOutputs <= kGemvThreads);
  if (threadIdx.x >= kOutputs) return;
  const int group = threadIdx.x / (kRows * kTokens);
  const int output = threadIdx.x % (kRows * kTokens);
  const int64_t n = (static_cast<int64_t>(blockIdx.x) * kGroups + group) * kRows + output / kTokens;
  if (n >= num_rows) return;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum += partial[group * kWarps + i][output];
  const int64_t at = output % kTokens * num_rows + n;
  if (float_y) {
    static_cast<float*>(y)[at] = sum;
  } else {
    static_cast<T*>(y)[at] = FromFloat<T>(sum);
  }
}

template <class T, int kTokens, int kRows, int kWarps>
cudaError_t LaunchGemv(cudaStream_t stream, const void* x, const void* w, int64_t N, int64_t K,
                       void* y, bool float_y) {
  const int64_t rows_of_block = int64_t{kGemvWarps / kWarps} * kRows;
  const auto blocks = static_cast<unsigned>(CeilDiv(N, rows_of_block));
  GemvKernel<T, kTokens, kRows, kWarps><<<blocks, kGemvThreads, 0, stream>>>(
      static_cast<const T*>(x), static_cast<const T*>(w), N, K, y, float_y);
  return cudaGetLastError();
}

template <class T, int kTokens>
cudaError_t LaunchVariant(cudaStream_t stream, int variant, const void* x, const void* w, int64_t N,
                          int64_t K, void* y, bool float_y) {
  switch (variant) {
    case 0:
      return LaunchGemv<T, kTokens, 1, 1>(stream, x, w, N, K, y, float_y);
    case 1:
      return LaunchGemv<T, kTokens, 1, 4>(stream, x, w, N, K, y, float_y);
    case 2:
      return LaunchGemv<T, kTokens, 2, 1>(stream, x, w, N, K, y, float_y);
    case 3:
      return LaunchGemv<T, kTokens, 2, 2>(stream, x, w, N, K, y, float_y);
    case 4:
      return LaunchGemv<T, kTokens, 2, 4>(stream, x, w, N, K, y, float_y);
    default:
      return cudaErrorInvalidValue;
  }
}

// One thread per output, tiles of x and w through shared memory.
template <class T, class Y>
__global__ void __launch_bounds__(kTile* kTile)
    PlainProductKernel(const T* x, int64_t num_tokens, const T* w, int64_t num_rows, int64_t depth,
                       int64_t tiles_per_row, Y* y) {
  __shared__ float x_tile[kTile][kTile + 1];
  __shared__ float w_tile[kTile][kTile + 1];
  const int column = threadIdx.x % kTile;
  const int line = threadIdx.x / kTile;
  const int64_t first_token = blockIdx.x / tiles_per_row * kTile;
  const int64_t first_row = blockIdx.x % tiles_per_row * kTile;
  const int64_t token = first_token + line;
  const int64_t loaded_row = first_row + line;
  float sum = 0;
  for (int64_t begin = 0; begin < depth; begin += kTile) {
    const int64_t k = begin + column;
    x_tile[line][column] = token < num_tokens && k < depth ? ToFloat(x[token * depth + k]) : 0.0f;
    w_tile[line][column] =
        loaded_row < num_rows && k < depth ? ToFloat(w[loaded_row * depth + k]) : 0.0f;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kTile; ++i) sum = fmaf(x_tile[line][i], w_tile[column][i], sum);
    __syncthreads();
  }
  const int64_t row = first_row + column;
  if (token < num_tokens && row < num_rows) y[token * num_rows + row] = FromFloat<Y>(sum);
}

template <class T>
__global__ void FillKernel(int64_t count, T* x) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  // A multiplicative hash with its high bits folded down, twice.
  uint64_t hash = static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15u;
  hash = (hash ^ (hash >> 32)) * 0xd6e8feb86659fd93u;
  const float unit = static_cast<float>(static_cast<uint32_t>(hash >> 40)) * 0x1p-24f;
  x[i] = FromFloat<T>(2.0f * unit - 1.0f);
}

}  // namespace

bool GemvTakes(Element type, const void* x, int64_t T, const void* w, int64_t K) {
  return type != Element::kF32 && T >= 1 && T <= kGemvMaxRows && K % 8 == 0 && Aligned(x) &&
         Aligned(w);
}

cudaError_t Gemv(cudaStream_t stream, int variant, Element type, const void* x, int64_t T,
                 const void* w, int64_t N, int64_t K, void* y, Element out) {
  if (N == 0) return cudaSuccess;
  if (!GemvTakes(type, x, T, w, K)) return cudaErrorInvalidValue;
  const bool float_y = out == Element::kF32;
  const auto launch = [&](auto element) {
    using Type = decltype(element);
    if (T == 1) return LaunchVariant<Type, 1>(stream, variant, x, w, N, K, y, float_y);
    return LaunchVariant<Type, 2>(stream, variant, x, w, N, K, y, float_y);
  };
  return type == Element::kF16 ? launch(__half{}) : launch(__nv_bfloat16{});
}

cudaError_t PlainProduct(cudaStream_t stream, Element type, const void* x, int64_t T, const void* w,
                         int64_t N, int64_t K, void* y, Element out) {
  if (T == 0 || N == 0) return cudaSuccess;
  const int64_t tiles_per_row = CeilDiv(N, kTile);
  const auto blocks = static_cast<unsigned>(tiles_per_row * CeilDiv(T, kTile));
  return WithType(type, [&](auto element) {
    using Type = decltype(element);
    const auto launch = [&](auto output) {
      using Y = decltype(output);
      PlainProductKernel<Type, Y><<<blocks, kTile * kTile, 0, stream>>>(
          static_cast<const Type*>(x), T, static_cast<const Type*>(w), N, K, tiles_per_row,
          static_cast<Y*>(y));
      return cudaGetLastError();
    };
    return out == Element::kF32 ? launch(float{}) : launch(element);
  });
}

cudaError_t FillForTiming(cudaStream_t stream, Element type, int64_t count, void* x) {
  if (count == 0) return cudaSuccess;
  constexpr int kFillThreads = 256;
  return WithType(type, [&](auto element) {
    using Type = decltype(element);
    FillKernel<Type>
        <<<static_cast<unsigned>(CeilDiv(count, kFillThreads)), kFillThreads, 0, stream>>>(
            count, static_cast<Type*>(x));
    return cudaGetLastError();
  });
}

}  // namespace polyreme::cuda
