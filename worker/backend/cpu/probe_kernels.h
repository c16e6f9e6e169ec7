// What the machine itself can do, with the same vectors as the ops: the two ceilings that a bench
// holds them against.
#pragma once

#include <stdint.h>

#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/row_kernels.h"

namespace polyreme::backend::cpu {

// Reads n floats, a multiple of 128; returns their sum, so that the reading cannot be left out.
template <class V>
float ReadAll(const float* from, int64_t n) {
  constexpr int kStreams = 8;
  V sum[kStreams];
  for (V& each : sum) each = V::Zero();
  for (int64_t i = 0; i < n; i += kStreams * kLanes) {
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) sum[s] = V::Add(sum[s], V::Load(from + i + s * kLanes));
  }
  V total = V::Zero();
  for (const V& each : sum) total = V::Add(total, each);
  return V::Sum(total);
}

// Multiplies and adds in registers, as many independent chains as a product's largest tile has;
// returns the number of floating-point operations done, and their result in *result.
template <class V>
int64_t MultiplyAdd(int64_t rounds, float* result) {
  constexpr int kChains = V::kMaxTileRows * V::PanelsForRows(V::kMaxTileRows);
  V sum[kChains];
  for (V& each : sum) each = V::Broadcast(*result);
  const V factor = V::Broadcast(*result);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 32
    for (int c = 0; c < kChains; ++c) sum[c] = V::Fma(sum[c], factor, factor);
  }
  V total = V::Zero();
  for (const V& each : sum) total = V::Add(total, each);
  *result = V::Sum(total);
  return rounds * kChains * kLanes * 2;
}

}  // namespace polyreme::backend::cpu
