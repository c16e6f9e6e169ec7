// Batches of random samples, for holding one sampler against another.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "worker/ops/sampling.h"

namespace polyreme::backend {

// What a sampler answers.
struct SampleResults {
  std::vector<ops::SampleOutput> outputs;
  std::vector<int32_t> top_tokens;  // [S, kMaxLogprobs], 0 where nothing was written
  std::vector<float> top_logprobs;
  std::vector<uint32_t> counts;
};

// Host memory of a SampleBatch. Logits lie as `shards` ranks would have gathered them, padding
// filled with NaN.
struct SampleCase {
  SampleCase(int32_t shards, int32_t vocabulary, int32_t num_samples);

  // As Ops::Sample would on the CPU.
  SampleResults RunOnCpu(int32_t num_threads) const;
  float& At(int64_t sample, int64_t token);
  float At(int64_t sample, int64_t token) const;

  int32_t shards;
  int32_t vocabulary;
  int32_t num_samples;
  int64_t columns;
  std::vector<float> logits;  // [shards, S, columns]
  std::vector<ops::SampleSpec> specs;
  std::vector<int32_t> bias_tokens = {0};
  std::vector<float> bias_values = {0};
  std::vector<int32_t> allowed = {0};
  std::vector<uint32_t> counts;  // [S, vocabulary]: slots are samples
};

// Every kind of row and of spec: smooth and tied rows, all equal, NaN, bans, lists, penalties,
// scores, padding.
SampleCase RandomCase(uint64_t seed, int32_t shards, int32_t vocabulary, int32_t num_samples);

// Adds a test failure for each difference: tokens, ranks and counts equal, log-probabilities within
// 1e-4. Returns how many rows differ.
int ExpectSameResults(const SampleCase& samples, const SampleResults& expected,
                      const SampleResults& got);

// Chi-square of `counts` against `probabilities`, judged at five standard deviations; a token of
// probability 0 must not occur.
void ExpectDistributed(const std::vector<int64_t>& counts,
                       const std::vector<double>& probabilities);
// After temperature, top-k, top-p and min-p, in double, by sorting.
std::vector<double> ExactProbabilities(const std::vector<float>& logits,
                                       const ops::SampleSpec& spec);

}  // namespace polyreme::backend
