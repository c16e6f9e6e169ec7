// Sixteen floats in two AVX registers. For kernels_avx2.cc only.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "worker/backend/cpu/kernels.h"

namespace polyreme::backend::cpu {

struct VectorAvx2 {
  // At most 6 vectors of sums, 12 of the 16 registers.
  static constexpr int kMaxTileRows = 6;
  static constexpr int PanelsForRows(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

  __m256 lo;
  __m256 hi;

  static VectorAvx2 Broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static VectorAvx2 Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static VectorAvx2 Load(const float* from) {
    return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
  }
  static VectorAvx2 LoadF16(const uint16_t* from) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8)))};
  }
  static VectorAvx2 LoadBf16(const uint16_t* from) { return {Widen(from), Widen(from + 8)}; }
  void Store(float* to) const {
    _mm256_storeu_ps(to, lo);
    _mm256_storeu_ps(to + 8, hi);
  }
  static VectorAvx2 Add(VectorAvx2 a, VectorAvx2 b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
  }
  static VectorAvx2 Sub(VectorAvx2 a, VectorAvx2 b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
  }
  static VectorAvx2 Mul(VectorAvx2 a, VectorAvx2 b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
  }
  static VectorAvx2 Div(VectorAvx2 a, VectorAvx2 b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
  }
  static VectorAvx2 Fma(VectorAvx2 a, VectorAvx2 b, VectorAvx2 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  static VectorAvx2 Max(VectorAvx2 a, VectorAvx2 b) {
    return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
  }
  static VectorAvx2 IfLess(VectorAvx2 a, VectorAvx2 b, VectorAvx2 then, VectorAvx2 otherwise) {
    return {_mm256_blendv_ps(otherwise.lo, then.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
            _mm256_blendv_ps(otherwise.hi, then.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
  }
  static VectorAvx2 PowerOfTwo(VectorAvx2 n) { return {PowerOfTwo(n.lo), PowerOfTwo(n.hi)}; }
  // Halves onto each other, as VectorScalar.
  static float Sum(VectorAvx2 v) { return Sum(_mm256_add_ps(v.lo, v.hi)); }
  static float Largest(VectorAvx2 v) { return Largest(_mm256_max_ps(v.lo, v.hi)); }
  // Four squares of eight by eight; the two off the diagonal change places.
  static void Transpose(VectorAvx2 (&rows)[kLanes]) {
    __m256 square[4][8];
    for (int i = 0; i < 8; ++i) {
      square[0][i] = rows[i].lo;
      square[1][i] = rows[i].hi;
      square[2][i] = rows[i + 8].lo;
      square[3][i] = rows[i + 8].hi;
    }
    for (__m256(&each)[8] : square) TransposeSquare(each);
    for (int i = 0; i < 8; ++i) {
      rows[i] = {square[0][i], square[2][i]};
      rows[i + 8] = {square[1][i], square[3][i]};
    }
  }

 private:
  static float Sum(__m256 eight) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static float Largest(__m256 eight) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static __m256 Widen(const uint16_t* from) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static __m256 PowerOfTwo(__m256 n) {
    const __m256i shifted = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(shifted, _mm256_set1_epi32(0x3f800000)));
  }
  static void TransposeSquare(__m256 (&r)[8]) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 4) {
      const __m256 a = _mm256_unpacklo_ps(r[i], r[i + 1]);
      const __m256 b = _mm256_unpackhi_ps(r[i], r[i + 1]);
      const __m256 c = _mm256_unpacklo_ps(r[i + 2], r[i + 3]);
      const __m256 d = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
      t[i] = _mm256_shuffle_ps(a, c, 0x44);
      t[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
      t[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
      t[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
    for (int j = 0; j < 4; ++j) {
      r[j] = _mm256_permute2f128_ps(t[j], t[j + 4], 0x20);
      r[j + 4] = _mm256_permute2f128_ps(t[j], t[j + 4], 0x31);
    }
  }
};

}  // namespace polyreme::backend::cpu
