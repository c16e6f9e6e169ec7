// Norms, gates, rotations and the exponential over one vector type V; see kernels.h.
//
// A sum over a row is sixteen running sums, lane j taking elements j, j + 16, ..., added at the end
// in one fixed tree.
#pragma once

#include <stdint.h>

#include "worker/backend/cpu/kernels.h"

namespace polyreme::backend::cpu {

// n <= 16 floats, zeros behind them.
template <class V>
inline V LoadSome(const float* from, int64_t n) {
  if (n >= kLanes) return V::Load(from);
  float whole[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) whole[i] = from[i];
  return V::Load(whole);
}

template <class V>
inline void StoreSome(V v, int64_t n, float* to) {
  if (n >= kLanes) return v.Store(to);
  float whole[kLanes];
  v.Store(whole);
  for (int64_t i = 0; i < n; ++i) to[i] = whole[i];
}

// e^x within 2 units in the last place; 0 below -87.3 (where float32 turns subnormal), infinite
// above 88.3, NaN of NaN. x = n ln 2 + r with |r| <= ln 2 / 2, then e^x = 2^n e^r with the
// polynomial of Cephes' expf for e^r.
template <class V>
inline V Exp(V x) {
  // Adding 1.5 * 2^23 rounds to an integer in the last bits of the sum.
  const V magic = V::Broadcast(12582912.0f);
  const V shifted = V::Fma(x, V::Broadcast(1.44269504088896341f), magic);
  const V n = V::Sub(shifted, magic);
  V r = V::Fma(n, V::Broadcast(-0.693359375f), x);
  r = V::Fma(n, V::Broadcast(2.12194440e-4f), r);
  V p = V::Broadcast(1.9875691500e-4f);
  p = V::Fma(p, r, V::Broadcast(1.3981999507e-3f));
  p = V::Fma(p, r, V::Broadcast(8.3334519073e-3f));
  p = V::Fma(p, r, V::Broadcast(4.1665795894e-2f));
  p = V::Fma(p, r, V::Broadcast(1.6666665459e-1f));
  p = V::Fma(p, r, V::Broadcast(5.0000001201e-1f));
  p = V::Fma(p, V::Mul(r, r), r);
  p = V::Add(p, V::Broadcast(1.0f));
  const V y = V::Mul(p, V::PowerOfTwo(shifted));
  const V low = V::Broadcast(-87.3f);
  const V high = V::Broadcast(88.3f);
  const V bounded = V::IfLess(x, low, V::Zero(), y);
  return V::IfLess(high, x, V::Broadcast(__builtin_inff()), bounded);
}

template <class V>
void RmsNormRow(const float* x, const float* gain, int64_t n, float epsilon, float* y) {
  V squares = V::Zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    const V v = LoadSome<V>(x + i, n - i);
    squares = V::Fma(v, v, squares);
  }
  const float mean = V::Sum(squares) / static_cast<float>(n);
  const V inverse = V::Broadcast(1.0f / __builtin_sqrtf(mean + epsilon));
  for (int64_t i = 0; i < n; i += kLanes) {
    const V v = V::Mul(LoadSome<V>(x + i, n - i), inverse);
    StoreSome(V::Mul(v, LoadSome<V>(gain + i, n - i)), n - i, y + i);
  }
}

template <class V>
void AddRow(const float* delta, int64_t n, float* x) {
  for (int64_t i = 0; i < n; i += kLanes) {
    StoreSome(V::Add(LoadSome<V>(x + i, n - i), LoadSome<V>(delta + i, n - i)), n - i, x + i);
  }
}

template <class V>
void SiluGateRow(const float* gate, const float* up, int64_t n, float* y) {
  const V one = V::Broadcast(1.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const V g = LoadSome<V>(gate + i, n - i);
    const V silu = V::Div(g, V::Add(one, Exp(V::Sub(V::Zero(), g))));
    StoreSome(V::Mul(silu, LoadSome<V>(up + i, n - i)), n - i, y + i);
  }
}

template <class V>
void RotateHead(const float* cos_sin, int64_t head_dim, float* x) {
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    const V c = LoadSome<V>(cos_sin + i, half - i);
    const V s = LoadSome<V>(cos_sin + half + i, half - i);
    const V a = LoadSome<V>(x + i, half - i);
    const V b = LoadSome<V>(x + half + i, half - i);
    StoreSome(V::Sub(V::Mul(a, c), V::Mul(b, s)), half - i, x + i);
    StoreSome(V::Add(V::Mul(b, c), V::Mul(a, s)), half - i, x + half + i);
  }
}

}  // namespace polyreme::backend::cpu
