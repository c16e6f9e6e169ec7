// The arithmetic of one token, for kernels and for tests on a host.
//
// Bit-equal to the CPU's sampler: penalties, the scaled value, the weight of a token and its noise.
// Close: sums of weights are exact in fixed point (2^-44 of the largest weight), whatever the order
// they are added in; the CPU adds doubles. A top-p border can fall elsewhere than the CPU's only
// where the running sum comes within about 1e-9 of the goal.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "worker/backend/cpu/exact_math.h"
#include "worker/backend/cpu/gumbel.h"
#include "worker/backend/host_device.h"
#include "worker/ops/sample_spec.h"

namespace polyreme::cuda::sampling {

using backend::BitsAs;
using backend::Divide;
using backend::Multiply;
using backend::Plus;

constexpr float kBanned = -INFINITY;
constexpr uint32_t kInPrompt = 0x80000000u;
constexpr int kMaxTops = 20;  // limits::kMaxLogprobs
// Sums of fixed-point weights stay below 2^64, and ids below 2^22.
constexpr int kMaxVocabulary = 1 << 20;

// Tokens in the order in which filters keep them: larger values first, then smaller ids; a larger
// rank is further ahead. 0 is behind every token. NaN is no value.
POLYREME_HOST_DEVICE inline uint64_t RankOf(float value, int token) {
  const auto bits = BitsAs<uint32_t>(Plus(value, 0.0f));  // -0 is 0
  const uint32_t key = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return (static_cast<uint64_t>(key) << 32) | ~static_cast<uint32_t>(token);
}
POLYREME_HOST_DEVICE inline float ValueOf(uint64_t rank) {
  const auto key = static_cast<uint32_t>(rank >> 32);
  return BitsAs<float>((key >> 31) != 0 ? key & 0x7fffffffu : ~key);
}
POLYREME_HOST_DEVICE inline int TokenOf(uint64_t rank) {
  return static_cast<int>(~static_cast<uint32_t>(rank));
}

POLYREME_HOST_DEVICE inline bool IsNumber(float value) {
  return fabsf(value) <= FLT_MAX;
}

POLYREME_HOST_DEVICE inline bool HasPenalty(const ops::SampleSpec& spec) {
  return spec.repetition_penalty != 1.0f || spec.presence_penalty != 0.0f ||
         spec.frequency_penalty != 0.0f;
}
POLYREME_HOST_DEVICE inline float Penalised(const ops::SampleSpec& spec, uint32_t count,
                                            float logit) {
  if (count == 0) return logit;
  logit =
      logit > 0 ? Divide(logit, spec.repetition_penalty) : Multiply(logit, spec.repetition_penalty);
  const uint32_t in_output = count & ~kInPrompt;
  if (in_output == 0) return logit;
  logit = Plus(logit, -Multiply(static_cast<float>(in_output), spec.frequency_penalty));
  return Plus(logit, -spec.presence_penalty);
}

// Over the row's largest; at most 0, -infinity where nothing may be drawn.
POLYREME_HOST_DEVICE inline float Scaled(float value, float largest, float temperature) {
  const float over = Plus(value, -largest);
  return Plus(temperature == 1.0f ? over : Divide(over, temperature), 0.0f);
}

// The filters of a row. A top_k of the whole vocabulary drops nothing.
POLYREME_HOST_DEVICE inline bool KeepsK(const ops::SampleSpec& spec, int vocabulary) {
  return spec.top_k > 0 && spec.top_k < vocabulary;
}
POLYREME_HOST_DEVICE inline bool KeepsP(const ops::SampleSpec& spec) {
  return spec.top_p < 1;
}
// What min-p leaves is not below this.
POLYREME_HOST_DEVICE inline float LeastOf(const ops::SampleSpec& spec) {
  if (!(spec.min_p > 0)) return kBanned;
  return static_cast<float>(backend::cpu::ExactLog(spec.min_p));
}

// Bins of a scaled value, the largest values in bin 0: 1/64 wide, all below -32 in the last.
constexpr int kBins = 2048;
POLYREME_HOST_DEVICE inline int BinOf(float scaled) {
  return static_cast<int>(fminf(fmaxf(Multiply(scaled, -64.0f), 0.0f), kBins - 1.0f));
}

// e^scaled in fixed point.
POLYREME_HOST_DEVICE inline uint64_t WeightOf(float scaled) {
  if (scaled < -32.0f) return 0;  // as rounding would
  return static_cast<uint64_t>(Plus(Multiply(backend::cpu::ExactExp(scaled), 0x1p44), 0.5));
}
// What a running sum of weights has to reach for top-p; a token of weight reaches at least it.
POLYREME_HOST_DEVICE inline uint64_t GoalOf(float top_p, uint64_t total) {
  const double goal = ceil(Multiply(static_cast<double>(top_p), static_cast<double>(total)));
  if (!(goal >= 1)) return 1;
  return goal >= static_cast<double>(total) ? total : static_cast<uint64_t>(goal);
}

POLYREME_HOST_DEVICE inline backend::cpu::NoiseKey NoiseOf(const ops::SampleSpec& spec) {
  return {spec.seed, static_cast<uint32_t>(spec.choice), static_cast<uint32_t>(spec.position)};
}

// GumbelOf within 1e-4, by the processor's fast logarithm: enough to know who cannot win.
POLYREME_HOST_DEVICE inline float FastLog(float x) {
#ifdef __CUDA_ARCH__
  return __logf(x);
#else
  return logf(x);
#endif
}
POLYREME_HOST_DEVICE inline float FastGumbelOf(uint32_t word) {
  const float u = (static_cast<float>(word) + 0.5f) * 0x1p-32f;
  const float rest = (static_cast<float>(~word) + 0.5f) * 0x1p-32f;  // 1 - u, exact near u = 1
  // Near 1 the fast logarithm is only absolutely good; the series is relatively.
  const float series = rest * (1 + rest * (0.5f + rest * (1.0f / 3 + rest * 0.25f)));
  return -FastLog(rest < 0.03125f ? series : -FastLog(u));
}
constexpr float kGumbelSlack = 2e-3f;   // more than what two fast values may be off together
constexpr float kAboveGumbel = 22.95f;  // above every fast value and every exact one

}  // namespace polyreme::cuda::sampling
