// Conversions between float32 and the 16-bit formats, one value at a time.
//
// Templates, so that each instruction set's file has its own copies (see kernels.h); Tag is that
// file's vector type, or anything else elsewhere.
#pragma once

#include <stdint.h>

namespace polyreme::backend::cpu {

template <class Tag>
inline float FloatOfBits(uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}

template <class Tag>
inline float FromBf16(uint16_t value) {
  return FloatOfBits<Tag>(uint32_t{value} << 16);
}

template <class Tag>
inline float FromF16(uint16_t value) {
  const uint32_t sign = (value & 0x8000u) << 16;
  const uint32_t exponent = (value >> 10) & 31u;
  const uint32_t mantissa = value & 1023u;
  if (exponent == 31) {  // a NaN becomes a quiet one
    const uint32_t quiet = mantissa != 0 ? 0x400000u : 0u;
    return FloatOfBits<Tag>(sign | 0x7f800000u | quiet | (mantissa << 13));
  }
  if (exponent == 0) {  // subnormal: mantissa * 2^-24, exact in float32
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return FloatOfBits<Tag>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

// To nearest, ties to even; a NaN stays one.
template <class Tag>
inline uint16_t ToBf16(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// To nearest, ties to even; beyond 65504 infinite; a NaN stays one.
template <class Tag>
inline uint16_t ToF16(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u)
    return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 1023u));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude <
      0x38800000u) {  // subnormal: adding 0.5 leaves the value in units of 2^-24, rounded
    const float shifted = FloatOfBits<Tag>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace polyreme::backend::cpu
