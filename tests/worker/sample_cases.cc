#include "tests/worker/sample_cases.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "parallel/base/limits.h"
#include "parallel/base/status.h"
#include "worker/backend/cpu/cpu_sampler.h"
#include "worker/backend/cpu/gumbel.h"

namespace polyreme::backend {
namespace {

using ops::SampleSpec;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kTops = limits::kMaxLogprobs;

class Maker {
 public:
  Maker(uint64_t seed, SampleCase& samples) : random_(seed), samples_(samples) {}

  void MakeRow(int64_t s) {
    constexpr float kSpreads[] = {0.3f, 1.0f, 3.0f, 12.0f};
    std::normal_distribution<float> normal(Chance(0.2) ? -15.0f : 0.0f, kSpreads[Below(4)]);
    const int style = Below(12);
    for (int64_t t = 0; t < samples_.vocabulary; ++t) {
      float value = normal(random_);
      if (style == 0) value = 2.5f;
      if (style == 1) value = std::round(value);                   // many equals
      if (style == 2) value = std::round(value * 16) / 16 + 0.0f;  // some
      if (style == 3 && t % 3 == 0) value = -value * 0.0f;         // zeros of both signs
      samples_.At(s, t) = value;
    }
    if (style == 4) samples_.At(s, Token()) += 40.0f;  // a sure token
    if (style == 5 && Chance(0.4)) {
      constexpr float kBad[] = {NAN, kInfinity, -kInfinity};
      samples_.At(s, Token()) = kBad[Below(3)];
    }
  }

  void MakeSpec(int64_t s) {
    SampleSpec& spec = samples_.specs[static_cast<size_t>(s)];
    const int kind = Below(16);
    if (kind == 0) spec.kind = SampleSpec::Kind::kSkip;
    if (kind == 1) spec.kind = SampleSpec::Kind::kScore;
    spec.slot = static_cast<int32_t>(s);
    spec.position = Below(100000);
    spec.target = Token();
    spec.seed = random_();
    spec.choice = Below(8);
    if (Chance(0.3)) spec.num_logprobs = Below(limits::kMaxLogprobs + 1);
    constexpr float kTemperatures[] = {0.0f, 0.2f, 0.6f, 1.0f, 1.0f, 2.0f};
    spec.temperature = kTemperatures[Below(6)];
    if (Chance(0.4)) spec.top_k = 1 + Below(Chance(0.6) ? 50 : samples_.vocabulary + 5);
    if (Chance(0.5)) spec.top_p = 0.001f + 0.998f * Fraction();
    if (Chance(0.2)) spec.min_p = 0.2f * Fraction() * Fraction();
    if (Chance(0.2)) spec.repetition_penalty = 0.8f + Fraction();
    if (Chance(0.1)) spec.presence_penalty = Fraction() * 2 - 1;
    if (Chance(0.1)) spec.frequency_penalty = Fraction() * 2 - 1;
    if (Chance(0.2)) AddBiases(spec);
    if (Chance(0.1)) AddList(spec);
  }

  void MakeCounts(int64_t s) {
    for (int64_t t = 0; t < samples_.vocabulary; ++t) {
      if (!Chance(0.05)) continue;
      samples_.counts[static_cast<size_t>(s * samples_.vocabulary + t)] =
          (Chance(0.5) ? uint32_t{1} << 31 : 0) | static_cast<uint32_t>(Below(4));
    }
  }

 private:
  int Below(int end) { return static_cast<int>(random_() % static_cast<uint64_t>(end)); }
  int32_t Token() { return Below(samples_.vocabulary); }
  float Fraction() { return static_cast<float>(random_() % 100000) / 100000.0f; }
  bool Chance(double chance) { return Fraction() < chance; }
  void AddBiases(SampleSpec& spec) {
    spec.bias_begin = static_cast<int32_t>(samples_.bias_tokens.size());
    const int count = Below(Chance(0.2) ? 700 : 10);
    const int32_t twice = Token();
    for (int i = 0; i < count; ++i) {
      samples_.bias_tokens.push_back(Chance(0.2) ? twice : Token());
      samples_.bias_values.push_back(Chance(0.3) ? -kInfinity : Fraction() * 20 - 10);
    }
    spec.bias_end = static_cast<int32_t>(samples_.bias_tokens.size());
  }
  void AddList(SampleSpec& spec) {
    spec.only_listed = true;
    spec.allowed_begin = static_cast<int32_t>(samples_.allowed.size());
    const int count = Below(Chance(0.5) ? 6 : samples_.vocabulary);
    for (int i = 0; i < count; ++i) samples_.allowed.push_back(Token());
    spec.allowed_end = static_cast<int32_t>(samples_.allowed.size());
  }

  std::mt19937_64 random_;
  SampleCase& samples_;
};

std::string Describe(const SampleCase& samples, int64_t s) {
  const SampleSpec& spec = samples.specs[static_cast<size_t>(s)];
  return fmt::format(
      "row {} of {}, {} tokens in {} shards: kind {} temperature {} top_k {} top_p {} min_p {} "
      "penalties {} {} {} biases {} listed {} of {} logprobs {}",
      s, samples.num_samples, samples.vocabulary, samples.shards, static_cast<int>(spec.kind),
      spec.temperature, spec.top_k, spec.top_p, spec.min_p, spec.repetition_penalty,
      spec.presence_penalty, spec.frequency_penalty, spec.bias_end - spec.bias_begin,
      spec.only_listed, spec.allowed_end - spec.allowed_begin, spec.num_logprobs);
}

// What a raw logit is worth in the draw, to judge a near tie of two tokens by.
double DrawValue(const SampleCase& samples, int64_t s, int32_t token) {
  const SampleSpec& spec = samples.specs[static_cast<size_t>(s)];
  const cpu::NoiseKey key{spec.seed, static_cast<uint32_t>(spec.choice),
                          static_cast<uint32_t>(spec.position)};
  const auto place = static_cast<size_t>(token % 4);
  const double logit = samples.At(s, token);
  return spec.temperature == 0
             ? logit
             : logit / spec.temperature + cpu::GumbelOf(key.WordsOf(token / 4)[place]);
}

bool SameRow(const SampleCase& samples, const SampleResults& expected, const SampleResults& got,
             int64_t s) {
  const ops::SampleOutput& a = expected.outputs[static_cast<size_t>(s)];
  const ops::SampleOutput& b = got.outputs[static_cast<size_t>(s)];
  if (a.token != b.token || a.finite != b.finite) {
    ADD_FAILURE() << Describe(samples, s) << "\n  token " << b.token << " finite " << b.finite
                  << " value " << DrawValue(samples, s, b.token) << ", expected " << a.token
                  << " finite " << a.finite << " value " << DrawValue(samples, s, a.token);
    return false;
  }
  if (a.rank != b.rank || !(std::abs(a.logprob - b.logprob) <= 1e-4f)) {
    ADD_FAILURE() << Describe(samples, s) << "\n  log-probability " << b.logprob << " rank "
                  << b.rank << ", expected " << a.logprob << " rank " << a.rank;
    return false;
  }
  for (int64_t i = s * kTops; i < (s + 1) * kTops; ++i) {
    const auto at = static_cast<size_t>(i);
    if (expected.top_tokens[at] == got.top_tokens[at] &&
        std::abs(expected.top_logprobs[at] - got.top_logprobs[at]) <= 1e-4f) {
      continue;
    }
    ADD_FAILURE() << Describe(samples, s) << "\n  top " << i - s * kTops << " is token "
                  << got.top_tokens[at] << " at " << got.top_logprobs[at] << ", expected "
                  << expected.top_tokens[at] << " at " << expected.top_logprobs[at];
    return false;
  }
  return true;
}

}  // namespace

// Rows are aligned for some shapes and not for others, so that both ways of reading are met.
SampleCase::SampleCase(int32_t shard_count, int32_t vocabulary_size, int32_t count)
    : shards(shard_count),
      vocabulary(vocabulary_size),
      num_samples(count),
      columns((vocabulary_size + shard_count - 1) / shard_count + (count % 2 == 0 ? 0 : 3)),
      logits(static_cast<size_t>(shard_count * columns * count),
             std::numeric_limits<float>::quiet_NaN()),
      specs(static_cast<size_t>(count)),
      counts(static_cast<size_t>(int64_t{count} * vocabulary_size)) {}

float& SampleCase::At(int64_t sample, int64_t token) {
  return logits[static_cast<size_t>((token / columns * num_samples + sample) * columns +
                                    token % columns)];
}
float SampleCase::At(int64_t sample, int64_t token) const {
  return const_cast<SampleCase*>(this)->At(sample, token);
}

SampleResults SampleCase::RunOnCpu(int32_t num_threads) const {
  SampleResults results;
  const auto rows = static_cast<size_t>(num_samples);
  results.outputs.resize(rows);
  results.top_tokens.resize(rows * kTops);
  results.top_logprobs.resize(rows * kTops);
  results.counts = counts;
  std::vector<float> workspace(rows * static_cast<size_t>(vocabulary));
  ops::SampleBatch batch;
  batch.num_samples = num_samples;
  batch.vocabulary = vocabulary;
  batch.logits = {logits.data(), DType::kF32, Shape({shards, num_samples, columns})};
  batch.specs = batch.host_specs = specs.data();
  batch.bias_tokens = bias_tokens.data();
  batch.bias_values = bias_values.data();
  batch.allowed_tokens = allowed.data();
  batch.token_counts = results.counts.data();
  batch.outputs = results.outputs.data();
  batch.top_tokens = results.top_tokens.data();
  batch.top_logprobs = results.top_logprobs.data();
  batch.workspace = {workspace.data(), DType::kF32, Shape({num_samples, vocabulary})};
  ThreadPool pool(num_threads);
  SampleOnCpu(pool, batch);
  return results;
}

SampleCase RandomCase(uint64_t seed, int32_t shards, int32_t vocabulary, int32_t num_samples) {
  SampleCase samples(shards, vocabulary, num_samples);
  Maker maker(seed, samples);
  for (int64_t s = 0; s < num_samples; ++s) {
    maker.MakeRow(s);
    maker.MakeSpec(s);
    maker.MakeCounts(s);
  }
  return samples;
}

int ExpectSameResults(const SampleCase& samples, const SampleResults& expected,
                      const SampleResults& got) {
  int differing = 0;
  for (int64_t s = 0; s < samples.num_samples; ++s) {
    if (!SameRow(samples, expected, got, s)) ++differing;
  }
  EXPECT_EQ(expected.counts, got.counts);
  EXPECT_EQ(differing, 0) << "of " << samples.num_samples << " rows";
  return differing;
}

void ExpectDistributed(const std::vector<int64_t>& counts,
                       const std::vector<double>& probabilities) {
  const auto draws = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  double chi_square = 0;
  int degrees = -1;
  double rest_expected = 0;
  double rest_seen = 0;
  const auto judge = [&](double seen, double expected) {
    chi_square += (seen - expected) * (seen - expected) / expected;
    ++degrees;
  };
  for (size_t t = 0; t < counts.size(); ++t) {
    const double expected = probabilities[t] * draws;
    const auto seen = static_cast<double>(counts[t]);
    if (expected >= 8) {
      judge(seen, expected);
      continue;
    }
    if (expected == 0) {
      EXPECT_EQ(counts[t], 0) << "token " << t << " may not be drawn";
    }
    rest_expected += expected;  // too rare to judge alone
    rest_seen += seen;
  }
  if (rest_expected >= 8) judge(rest_seen, rest_expected);
  ASSERT_GE(degrees, 1);
  EXPECT_LT(chi_square, degrees + 5 * std::sqrt(2.0 * degrees)) << degrees << " degrees";
}

std::vector<double> ExactProbabilities(const std::vector<float>& logits, const SampleSpec& spec) {
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  const double max = logits[order[0]];
  if (spec.top_k > 0 && static_cast<size_t>(spec.top_k) < order.size()) {
    order.resize(static_cast<size_t>(spec.top_k));
  }
  const auto weight = [&](size_t t) { return std::exp((logits[t] - max) / spec.temperature); };
  double total = 0;
  for (const size_t t : order) total += weight(t);
  double sum = 0;
  std::vector<double> kept(logits.size(), 0.0);
  for (const size_t t : order) {
    if (spec.top_p < 1 && sum >= spec.top_p * total) break;
    sum += weight(t);
    if (weight(t) >= spec.min_p) kept[t] = weight(t);
  }
  const double all = std::accumulate(kept.begin(), kept.end(), 0.0);
  for (double& p : kept) p /= all;
  return kept;
}

}  // namespace polyreme::backend
