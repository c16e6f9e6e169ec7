// The values of a dummy model: each element is a pure function of its tensor's name, its index in
// the whole tensor and a seed, the same bits on CPU and GPU, so that every layout holds slices of
// one model.
//
// Plain C++17 without abseil: .cu files include it too.
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define POLYREME_HOST_DEVICE __host__ __device__
#else
#define POLYREME_HOST_DEVICE
#endif

namespace polyreme::weights {

// Of one tensor: the element at `index` is offset + scale * u, u uniform in (-1, 1) and never zero.
struct DummyValues {
  uint64_t key = 0;
  float scale = 0;
  float offset = 0;
};

// The finaliser of splitmix64: each bit of the result depends on each bit of `bits`.
POLYREME_HOST_DEVICE inline uint64_t MixBits(uint64_t bits) {
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9ULL;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebULL;
  return bits ^ (bits >> 31);
}

// DummyValues::key of a tensor: FNV-1a of its name, mixed with the seed.
inline uint64_t DummyKey(const char* name, uint64_t name_bytes, uint64_t seed) {
  uint64_t hash = 0xcbf29ce484222325ULL;
  for (uint64_t i = 0; i < name_bytes; ++i) {
    hash = (hash ^ static_cast<unsigned char>(name[i])) * 0x100000001b3ULL;
  }
  return MixBits(hash ^ MixBits(seed + 0x9e3779b97f4a7c15ULL));
}

// An odd number of 24 bits, centred and scaled by a power of two: exact in a float, never zero.
POLYREME_HOST_DEVICE inline float DummyUniform(uint64_t key, uint64_t index) {
  const uint64_t bits = MixBits(key + (index + 1) * 0x9e3779b97f4a7c15ULL);
  const int32_t odd = static_cast<int32_t>((bits >> 40) | 1u) - (1 << 23);
  return static_cast<float>(odd) * (1.0f / (1 << 23));
}

// Two roundings, never one: a fused multiply-add would tell a GPU from a CPU.
POLYREME_HOST_DEVICE inline float DummyValue(const DummyValues& values, uint64_t index) {
  const float u = DummyUniform(values.key, index);
#ifdef __CUDA_ARCH__
  return __fadd_rn(values.offset, __fmul_rn(values.scale, u));
#else
  const float scaled = values.scale * u;
  return values.offset + scaled;
#endif
}

// Bits of a finite value in bfloat16, to nearest, ties to even.
POLYREME_HOST_DEVICE inline uint16_t DummyToBf16(float value) {
  uint32_t bits = 0;
  memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Bits of a value below 65504 in float16, to nearest, ties to even, but the smallest number rather
// than zero: a dummy weight is never zero.
POLYREME_HOST_DEVICE inline uint16_t DummyToF16(float value) {
  uint32_t bits = 0;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half = 0;
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the value in units of 2^-24, rounded.
    float shifted = 0;
    memcpy(&shifted, &magnitude, sizeof shifted);
    shifted += 0.5f;
    memcpy(&half, &shifted, sizeof half);
    half -= 0x3f000000u;
  } else {
    half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  }
  return static_cast<uint16_t>(sign | (half == 0 ? 1u : half));
}

}  // namespace polyreme::weights

#undef POLYREME_HOST_DEVICE
