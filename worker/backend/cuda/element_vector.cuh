// How the kernels touch elements: several at a time as floats, by one access where they lie
// together and aligned. sm_70 and newer: 16-bit elements are only converted, never computed with.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "worker/backend/cuda/element.h"

namespace polyreme::cuda {

// Elements of one wide access: 16 bytes of a 16-bit type, twice 16 of float.
constexpr int kWide = 8;

__device__ __forceinline__ float ToFloat(float value) {
  return value;
}
__device__ __forceinline__ float ToFloat(__half value) {
  return __half2float(value);
}
__device__ __forceinline__ float ToFloat(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

template <class T>
__device__ __forceinline__ T FromFloat(float value);
template <>
__device__ __forceinline__ float FromFloat<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half FromFloat<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 FromFloat<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
// As it would be after storing.
template <class T>
__device__ __forceinline__ float RoundTo(float value) {
  return ToFloat(FromFloat<T>(value));
}

template <class T, int V>
struct alignas(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Pack {
  T at[V];
};

template <class T, int V>
__device__ __forceinline__ void Load(const T* from, float (&to)[V]) {
  const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(from);
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = ToFloat(pack.at[i]);
}

template <class T, int V>
__device__ __forceinline__ void Store(const float (&from)[V], T* to) {
  Pack<T, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) pack.at[i] = FromFloat<T>(from[i]);
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

// The sum over a warp, in every lane, always in the same order.
__device__ __forceinline__ float WarpSum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

// Calls f with a value of the element's type.
template <class F>
cudaError_t WithType(Element element, F f) {
  switch (element) {
    case Element::kF32:
      return f(float{});
    case Element::kF16:
      return f(__half{});
    case Element::kBF16:
      return f(__nv_bfloat16{});
  }
  return cudaErrorInvalidValue;
}

inline bool Aligned(const void* pointer, uintptr_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

inline int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace polyreme::cuda
