#include "worker/weights/floats.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace polyreme::weights {
namespace {

template <class T>
T LoadUnaligned(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

float FromBf16(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

// 1 sign bit, 5 of exponent, 10 of fraction.
float FromF16(uint16_t bits) {
  const uint32_t sign = uint32_t{bits} >> 15 << 31;
  const uint32_t exponent = bits >> 10 & 31u;
  const uint32_t fraction = bits & 1023u;
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 31 ? 255u : exponent - 15u + 127u;
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

}  // namespace

void AppendAsFloats(DType dtype, const std::byte* data, int64_t count, std::vector<float>& out) {
  CHECK(IsFloat(dtype), "{} is no float", NameOf(dtype));
  const int64_t stride = SizeOf(dtype);
  for (int64_t i = 0; i < count; ++i) {
    const std::byte* from = data + i * stride;
    if (dtype == DType::kF32) {
      out.push_back(LoadUnaligned<float>(from));
    } else {
      const uint16_t bits = LoadUnaligned<uint16_t>(from);
      out.push_back(dtype == DType::kBF16 ? FromBf16(bits) : FromF16(bits));
    }
  }
}

}  // namespace polyreme::weights
