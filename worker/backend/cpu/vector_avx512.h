// Sixteen floats in one AVX-512 register. For kernels_avx512.cc only.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "worker/backend/cpu/kernels.h"

namespace polyreme::backend::cpu {

struct VectorAvx512 {
  // 24 of the 32 registers hold sums: enough chains to hide the latency of an FMA, the rest for
  // operands.
  static constexpr int kMaxTileRows = 12;
  static constexpr int PanelsForRows(int rows) { return rows <= 3 ? 8 : rows <= 6 ? 4 : 2; }

  __m512 v;

  static VectorAvx512 Broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static VectorAvx512 Zero() { return {_mm512_setzero_ps()}; }
  static VectorAvx512 Load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static VectorAvx512 LoadF16(const uint16_t* from) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
  }
  static VectorAvx512 LoadBf16(const uint16_t* from) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  void Store(float* to) const { _mm512_storeu_ps(to, v); }
  static VectorAvx512 Add(VectorAvx512 a, VectorAvx512 b) { return {_mm512_add_ps(a.v, b.v)}; }
  static VectorAvx512 Sub(VectorAvx512 a, VectorAvx512 b) { return {_mm512_sub_ps(a.v, b.v)}; }
  static VectorAvx512 Mul(VectorAvx512 a, VectorAvx512 b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static VectorAvx512 Div(VectorAvx512 a, VectorAvx512 b) { return {_mm512_div_ps(a.v, b.v)}; }
  static VectorAvx512 Fma(VectorAvx512 a, VectorAvx512 b, VectorAvx512 c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
  }
  static VectorAvx512 Max(VectorAvx512 a, VectorAvx512 b) { return {_mm512_max_ps(a.v, b.v)}; }
  static VectorAvx512 IfLess(VectorAvx512 a, VectorAvx512 b, VectorAvx512 then,
                             VectorAvx512 otherwise) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), otherwise.v, then.v)};
  }
  static VectorAvx512 PowerOfTwo(VectorAvx512 n) {
    const __m512i shifted = _mm512_slli_epi32(_mm512_castps_si512(n.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(shifted, _mm512_set1_epi32(0x3f800000)))};
  }
  // Halves onto each other, as VectorScalar.
  static float Sum(VectorAvx512 v) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v.v), _mm512_extractf32x8_ps(v.v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static float Largest(VectorAvx512 v) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(v.v), _mm512_extractf32x8_ps(v.v, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  // Quarters of four lanes are transposed with unpacks; then quarters are dealt to their rows.
  static void Transpose(VectorAvx512 (&rows)[kLanes]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 4) {
      const __m512 a = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
      const __m512 b = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
      const __m512 c = _mm512_unpacklo_ps(rows[i + 2].v, rows[i + 3].v);
      const __m512 d = _mm512_unpackhi_ps(rows[i + 2].v, rows[i + 3].v);
      t[i] = _mm512_shuffle_ps(a, c, 0x44);
      t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
      t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
      t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    for (int j = 0; j < 4; ++j) {
      const __m512 a = _mm512_shuffle_f32x4(t[j], t[j + 4], 0x88);
      const __m512 b = _mm512_shuffle_f32x4(t[j], t[j + 4], 0xdd);
      const __m512 c = _mm512_shuffle_f32x4(t[j + 8], t[j + 12], 0x88);
      const __m512 d = _mm512_shuffle_f32x4(t[j + 8], t[j + 12], 0xdd);
      rows[j].v = _mm512_shuffle_f32x4(a, c, 0x88);
      rows[j + 8].v = _mm512_shuffle_f32x4(a, c, 0xdd);
      rows[j + 4].v = _mm512_shuffle_f32x4(b, d, 0x88);
      rows[j + 12].v = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
  }
};

}  // namespace polyreme::backend::cpu
