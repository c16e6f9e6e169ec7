// One element a thread and a grid that strides: loading waits for the bus, not for these.
#include "worker/backend/cuda/weight_kernels.h"

#include <cuda_fp16.h>

namespace polyreme::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 8192;

unsigned BlocksFor(int64_t count) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

// bfloat16 as its bits; float16 needs the hardware's conversions.
struct Bf16 {
  uint16_t bits;
};

__device__ float ToFloat(float value) {
  return value;
}
__device__ float ToFloat(__half value) {
  return __half2float(value);
}
__device__ float ToFloat(Bf16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

template <class T>
__device__ T FromFloat(float value);
template <>
__device__ float FromFloat<float>(float value) {
  return value;
}
template <>
__device__ __half FromFloat<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ Bf16 FromFloat<Bf16>(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return {static_cast<uint16_t>((bits >> 16) | 0x40u)};  // a NaN stays one
  }
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// A dummy value as its checkpoint would store it.
template <class T>
__device__ T StoredDummy(float value);
template <>
__device__ float StoredDummy<float>(float value) {
  return value;
}
template <>
__device__ __half StoredDummy<__half>(float value) {
  return __ushort_as_half(weights::DummyToF16(value));
}
template <>
__device__ Bf16 StoredDummy<Bf16>(float value) {
  return {weights::DummyToBf16(value)};
}

template <class From, class To>
__global__ void ConvertKernel(const From* __restrict__ from, int64_t count, To* __restrict__ to) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += stride) {
    to[i] = FromFloat<To>(ToFloat(from[i]));
  }
}

template <class From>
__global__ void ConvertToHalfKernel(const From* __restrict__ from, int64_t count,
                                    __half* __restrict__ to, unsigned long long* overflows) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  unsigned long long bad = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += stride) {
    const float value = ToFloat(from[i]);
    const __half half = __float2half_rn(value);
    // What was infinite or NaN before is the checkpoint's own business.
    if ((__half_as_ushort(half) & 0x7c00u) == 0x7c00u && isfinite(value)) ++bad;
    to[i] = half;
  }
  if (bad != 0) atomicAdd(overflows, bad);
}

template <class Stored, class To>
__global__ void DummyKernel(DummyWindow window, int64_t count, int64_t cols, To* __restrict__ to) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += stride) {
    const int64_t row = window.first_row + i / cols;
    const int64_t col = window.first_col + i % cols;
    const uint64_t index = static_cast<uint64_t>(row * window.full_cols + col);
    const Stored stored = StoredDummy<Stored>(weights::DummyValue(window.values, index));
    to[i] = FromFloat<To>(ToFloat(stored));
  }
}

// Calls function(T{}) with the type of an element.
template <class Function>
cudaError_t WithType(Element element, const Function& function) {
  switch (element) {
    case Element::kF32:
      return function(float{});
    case Element::kF16:
      return function(__half{});
    case Element::kBF16:
      return function(Bf16{});
  }
  return cudaErrorInvalidValue;
}

template <class From>
cudaError_t ConvertFrom(cudaStream_t stream, const From* from, int64_t count, void* to,
                        Element to_type, unsigned long long* overflows) {
  const unsigned blocks = BlocksFor(count);
  switch (to_type) {
    case Element::kF32:
      ConvertKernel<<<blocks, kThreads, 0, stream>>>(from, count, static_cast<float*>(to));
      break;
    case Element::kF16:
      ConvertToHalfKernel<<<blocks, kThreads, 0, stream>>>(from, count, static_cast<__half*>(to),
                                                           overflows);
      break;
    case Element::kBF16:
      ConvertKernel<<<blocks, kThreads, 0, stream>>>(from, count, static_cast<Bf16*>(to));
      break;
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t ConvertWeights(cudaStream_t stream, const void* from, Element from_type, int64_t count,
                           void* to, Element to_type, unsigned long long* overflows) {
  if (count == 0) return cudaSuccess;
  return WithType(from_type, [&](auto type) {
    return ConvertFrom(stream, static_cast<const decltype(type)*>(from), count, to, to_type,
                       overflows);
  });
}

cudaError_t MakeDummyWeights(cudaStream_t stream, const DummyWindow& window, Element stored_type,
                             int64_t rows, int64_t cols, void* to, Element to_type) {
  const int64_t count = rows * cols;
  if (count == 0) return cudaSuccess;
  return WithType(stored_type, [&](auto stored) {
    return WithType(to_type, [&](auto type) {
      using To = decltype(type);
      DummyKernel<decltype(stored), To>
          <<<BlocksFor(count), kThreads, 0, stream>>>(window, count, cols, static_cast<To*>(to));
      return cudaGetLastError();
    });
  });
}

}  // namespace polyreme::cuda
