// Sixteen floats without vector instructions: what the other two must equal, bit for bit.
#pragma once

#include <stdint.h>

#include "worker/backend/cpu/float_formats.h"
#include "worker/backend/cpu/kernels.h"

namespace polyreme::backend::cpu {

struct VectorScalar {
  // Rows and panels of the largest register tile of a product; see product_kernels.h.
  static constexpr int kMaxTileRows = 4;
  static constexpr int PanelsForRows(int) { return 1; }

  float lane[kLanes];

  template <class Function>
  static VectorScalar Make(Function f) {
    VectorScalar v;
    for (int i = 0; i < kLanes; ++i) v.lane[i] = f(i);
    return v;
  }
  static VectorScalar Broadcast(float x) {
    return Make([=](int) { return x; });
  }
  static VectorScalar Zero() { return Broadcast(0.0f); }
  static VectorScalar Load(const float* from) {
    return Make([=](int i) { return from[i]; });
  }
  static VectorScalar LoadF16(const uint16_t* from) {
    return Make([=](int i) { return FromF16<VectorScalar>(from[i]); });
  }
  static VectorScalar LoadBf16(const uint16_t* from) {
    return Make([=](int i) { return FromBf16<VectorScalar>(from[i]); });
  }
  void Store(float* to) const {
    for (int i = 0; i < kLanes; ++i) to[i] = lane[i];
  }
  static VectorScalar Add(VectorScalar a, VectorScalar b) {
    return Make([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static VectorScalar Sub(VectorScalar a, VectorScalar b) {
    return Make([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static VectorScalar Mul(VectorScalar a, VectorScalar b) {
    return Make([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static VectorScalar Div(VectorScalar a, VectorScalar b) {
    return Make([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  // a * b + c, rounded once.
  static VectorScalar Fma(VectorScalar a, VectorScalar b, VectorScalar c) {
    return Make([&](int i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
  }
  // a > b ? a : b, so b when either is NaN.
  static VectorScalar Max(VectorScalar a, VectorScalar b) {
    return Make([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  // a < b ? then : otherwise.
  static VectorScalar IfLess(VectorScalar a, VectorScalar b, VectorScalar then,
                             VectorScalar otherwise) {
    return Make([&](int i) { return a.lane[i] < b.lane[i] ? then.lane[i] : otherwise.lane[i]; });
  }
  // 2^n of lanes that hold n + 1.5 * 2^23, for n of [-126, 127].
  static VectorScalar PowerOfTwo(VectorScalar n) {
    return Make([&](int i) {
      const uint32_t bits = __builtin_bit_cast(uint32_t, n.lane[i]);
      return FloatOfBits<VectorScalar>((bits << 23) + 0x3f800000u);
    });
  }
  // Of all lanes: halves onto each other, lane i and i + 8, i + 4, i + 2, i + 1.
  static float Sum(VectorScalar v) {
    for (int64_t half = kLanes / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) v.lane[i] = v.lane[i] + v.lane[i + half];
    }
    return v.lane[0];
  }
  static float Largest(VectorScalar v) {
    for (int64_t half = kLanes / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) {
        v.lane[i] = v.lane[i] > v.lane[i + half] ? v.lane[i] : v.lane[i + half];
      }
    }
    return v.lane[0];
  }
  // Rows become columns.
  static void Transpose(VectorScalar (&rows)[kLanes]) {
    for (int i = 0; i < kLanes; ++i) {
      for (int j = 0; j < i; ++j) {
        const float swap = rows[i].lane[j];
        rows[i].lane[j] = rows[j].lane[i];
        rows[j].lane[i] = swap;
      }
    }
  }
};

}  // namespace polyreme::backend::cpu
