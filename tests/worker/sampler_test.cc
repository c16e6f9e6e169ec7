// The CPU's sampler against a naive definition in double precision, and against what probability
// says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "parallel/base/limits.h"
#include "worker/backend/cpu/cpu_sampler.h"
#include "worker/backend/cpu/gumbel.h"
#include "worker/backend/cpu/sample_filter.h"

namespace polyreme::backend {
namespace {

using ops::SampleSpec;
constexpr uint32_t kInPrompt = uint32_t{1} << 31;

// Owns what a SampleBatch points to. Logits lie as `shards` ranks would have gathered them, padding
// filled with NaN.
struct Samples {
  Samples(int32_t shard_count, int32_t vocabulary_size)
      : shards(shard_count),
        vocabulary(vocabulary_size),
        part((vocabulary_size + shard_count - 1) / shard_count + 3) {}

  SampleSpec& Add(const std::vector<float>& logits) {
    rows.push_back(logits);
    return specs.emplace_back();
  }
  void Run(int32_t num_threads = 1) {
    const auto count = static_cast<int64_t>(rows.size());
    std::vector<float> gathered(static_cast<size_t>(shards * count * part),
                                std::numeric_limits<float>::quiet_NaN());
    for (int64_t s = 0; s < count; ++s) {
      for (int64_t t = 0; t < vocabulary; ++t) {
        gathered[static_cast<size_t>((t / part * count + s) * part + t % part)] =
            rows[static_cast<size_t>(s)][static_cast<size_t>(t)];
      }
    }
    std::vector<float> workspace(static_cast<size_t>(count * vocabulary));
    outputs.resize(static_cast<size_t>(count));
    top_tokens.resize(static_cast<size_t>(count * limits::kMaxLogprobs));
    top_logprobs.resize(static_cast<size_t>(count * limits::kMaxLogprobs));
    ops::SampleBatch batch;
    batch.num_samples = static_cast<int32_t>(count);
    batch.vocabulary = vocabulary;
    batch.logits = {gathered.data(), DType::kF32, Shape({shards, count, part})};
    batch.specs = batch.host_specs = specs.data();
    batch.bias_tokens = bias_tokens.data();
    batch.bias_values = bias_values.data();
    batch.allowed_tokens = allowed.data();
    batch.token_counts = counts.empty() ? nullptr : counts.data();
    batch.outputs = outputs.data();
    batch.top_tokens = top_tokens.data();
    batch.top_logprobs = top_logprobs.data();
    batch.workspace = {workspace.data(), DType::kF32, Shape({count, vocabulary})};
    ThreadPool pool(num_threads);
    SampleOnCpu(pool, batch);
  }

  int32_t shards;
  int32_t vocabulary;
  int32_t part;
  std::vector<std::vector<float>> rows;
  std::vector<SampleSpec> specs;
  std::vector<int32_t> bias_tokens;
  std::vector<float> bias_values;
  std::vector<int32_t> allowed;
  std::vector<uint32_t> counts;
  std::vector<ops::SampleOutput> outputs;
  std::vector<int32_t> top_tokens;
  std::vector<float> top_logprobs;
};

std::vector<float> RandomLogits(uint64_t seed, int32_t vocabulary, float spread = 3.0f) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(static_cast<size_t>(vocabulary));
  for (float& logit : logits) logit = normal(random);
  return logits;
}

SampleSpec Greedy() {
  SampleSpec spec;
  spec.temperature = 0;
  return spec;
}

// The definition: probabilities after temperature, top-k, top-p and min-p, in double, by sorting.
std::vector<double> NaiveProbabilities(const std::vector<double>& logits, const SampleSpec& spec) {
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
    if (sum >= spec.top_p * total) break;
    sum += weight(t);
    if (weight(t) >= spec.min_p) kept[t] = weight(t);
  }
  const double all = std::accumulate(kept.begin(), kept.end(), 0.0);
  for (double& p : kept) p /= all;
  return kept;
}

// How often each token is drawn at positions 0 .. draws - 1.
std::vector<int> DrawMany(const std::vector<float>& logits, SampleSpec spec, int draws) {
  Samples samples(2, static_cast<int32_t>(logits.size()));
  for (int i = 0; i < draws; ++i) {
    spec.position = i;
    samples.Add(logits) = spec;
  }
  samples.Run();
  std::vector<int> counts(logits.size());
  for (const ops::SampleOutput& out : samples.outputs) ++counts[static_cast<size_t>(out.token)];
  return counts;
}

// Chi-square per degree of freedom stays near 1; a token that may not be drawn is never drawn.
void ExpectDistributed(const std::vector<int>& counts, const std::vector<double>& probabilities,
                       int draws) {
  double chi_square = 0;
  int degrees = -1;
  double rest_expected = 0;
  double rest_seen = 0;
  for (size_t t = 0; t < counts.size(); ++t) {
    const double expected = probabilities[t] * draws;
    if (probabilities[t] == 0) {
      EXPECT_EQ(counts[t], 0) << "token " << t;
    }
    if (expected < 8) {  // too rare to judge alone
      rest_expected += expected;
      rest_seen += counts[t];
      continue;
    }
    chi_square += (counts[t] - expected) * (counts[t] - expected) / expected;
    ++degrees;
  }
  if (rest_expected >= 8) {
    chi_square += (rest_seen - rest_expected) * (rest_seen - rest_expected) / rest_expected;
    ++degrees;
  }
  ASSERT_GE(degrees, 1);
  // Five standard deviations of a chi-square of that many degrees.
  EXPECT_LT(chi_square, degrees + 5 * std::sqrt(2.0 * degrees)) << degrees << " degrees";
}

TEST(Philox, AnswersThePublishedVectors) {
  using Words = cpu::PhiloxWords;
  EXPECT_EQ(cpu::Philox({0, 0, 0, 0}, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(cpu::Philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, ~uint64_t{0}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(cpu::Philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(ExactMath, AgreesWithTheLibrary) {
  for (double x = 0; x > -690; x -= 0.37) {
    EXPECT_NEAR(cpu::ExactExp(x) / std::exp(x), 1.0, 4e-15) << x;
  }
  EXPECT_EQ(cpu::ExactExp(-std::numeric_limits<double>::infinity()), 0.0);
  EXPECT_EQ(cpu::ExactExp(0.0), 1.0);
  for (double x = 1e-12; x < 1e12; x *= 1.37) {
    EXPECT_NEAR(cpu::ExactLog(x), std::log(x), 4e-15 * std::max(1.0, std::abs(std::log(x)))) << x;
  }
  EXPECT_EQ(cpu::ExactLog(1.0), 0.0);
  EXPECT_LT(cpu::GumbelOf(0xffffffff), cpu::kMaxGumbel);
  EXPECT_GT(cpu::GumbelOf(0xffffffff), cpu::kMaxGumbel - 0.1);
}

TEST(Sampler, GreedyTakesTheLargestAndTheLowestIdOfEquals) {
  for (const int32_t shards : {1, 2, 3}) {
    Samples samples(shards, 7);
    samples.Add({0, 5, 1, 5, 2, 5, -9}) = Greedy();
    samples.Add({-3, -3, -3, -3, -3, -3, -2}) = Greedy();
    samples.Run();
    EXPECT_EQ(samples.outputs[0].token, 1);
    EXPECT_EQ(samples.outputs[1].token, 6);
    EXPECT_EQ(samples.outputs[1].finite, 1);
  }
}

TEST(Sampler, DrawsFollowTheSoftmaxOfTheLogits) {
  const std::vector<float> logits = RandomLogits(5, 50, 1.5f);
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    SampleSpec spec;
    spec.temperature = temperature;
    spec.seed = 17;
    constexpr int kDraws = 40000;
    ExpectDistributed(DrawMany(logits, spec, kDraws),
                      NaiveProbabilities({logits.begin(), logits.end()}, spec), kDraws);
  }
}

TEST(Sampler, DrawsFollowTheFilteredDistribution) {
  const std::vector<float> logits = RandomLogits(6, 64, 2.0f);
  struct Case {
    int32_t top_k;
    float top_p;
    float min_p;
  };
  for (const Case c : {Case{5, 1, 0}, Case{0, 0.8f, 0}, Case{0, 1, 0.05f}, Case{20, 0.9f, 0.02f}}) {
    SCOPED_TRACE(fmt::format("top_k {} top_p {} min_p {}", c.top_k, c.top_p, c.min_p));
    SampleSpec spec;
    spec.temperature = 1.3f;
    spec.top_k = c.top_k;
    spec.top_p = c.top_p;
    spec.min_p = c.min_p;
    spec.seed = 99;
    constexpr int kDraws = 30000;
    ExpectDistributed(DrawMany(logits, spec, kDraws),
                      NaiveProbabilities({logits.begin(), logits.end()}, spec), kDraws);
  }
}

// Each filter keeps exactly the tokens that sorting keeps, equal values included.
TEST(SampleFilter, KeepsWhatSortingKeeps) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 300; ++round) {
    const int32_t n = 1 + static_cast<int32_t>(random() % 400);
    std::vector<float> x = RandomLogits(random(), n);
    if (round % 2 == 0) {
      for (float& v : x) v = std::round(v);  // many equals
    }
    if (round % 5 == 0) std::fill(x.begin(), x.end(), 2.0f);
    const float max = *std::max_element(x.begin(), x.end());
    for (float& v : x) v = v - max + 0.0f;
    SampleSpec spec;
    spec.top_k = 1 + static_cast<int32_t>(random() % 50);
    spec.top_p = 0.01f + 0.98f * static_cast<float>(random() % 1000) / 1000.0f;
    if (round % 3 == 0) spec.top_k = n;
    const std::vector<double> expected = NaiveProbabilities({x.begin(), x.end()}, spec);
    cpu::KeepTopK(absl::MakeSpan(x), spec.top_k);
    cpu::KeepTopP(absl::MakeSpan(x), spec.top_p);
    for (size_t t = 0; t < x.size(); ++t) {
      ASSERT_EQ(std::isfinite(x[t]), expected[t] > 0) << "round " << round << " token " << t;
    }
  }
}

TEST(Sampler, NeitherCompanyNorShardsNorThreadsChangeADraw) {
  constexpr int32_t kVocabulary = 301;
  std::vector<int32_t> alone;
  for (int i = 0; i < 20; ++i) {
    Samples one(1, kVocabulary);
    SampleSpec& spec = one.Add(RandomLogits(static_cast<uint64_t>(i), kVocabulary));
    spec.seed = static_cast<uint64_t>(i) << 33;
    spec.position = 5 * i;
    spec.top_p = 0.95f;
    one.Run();
    alone.push_back(one.outputs[0].token);
  }
  for (const int32_t shards : {1, 2, 4, 8}) {
    Samples all(shards, kVocabulary);
    for (int i = 19; i >= 0; --i) {
      SampleSpec& spec = all.Add(RandomLogits(static_cast<uint64_t>(i), kVocabulary));
      spec.seed = static_cast<uint64_t>(i) << 33;
      spec.position = 5 * i;
      spec.top_p = 0.95f;
    }
    all.Run(3);
    for (size_t i = 0; i < 20; ++i) EXPECT_EQ(all.outputs[19 - i].token, alone[i]);
  }
}

TEST(Sampler, SeedChoiceAndPositionEachChangeTheNoise) {
  const std::vector<float> flat(1000, 0.0f);
  Samples samples(1, 1000);
  samples.Add(flat);
  samples.Add(flat).seed = 1;
  samples.Add(flat).choice = 1;
  samples.Add(flat).position = 1;
  samples.Add(flat).seed = uint64_t{1} << 32;
  samples.Add(flat);
  samples.Run();
  std::map<int32_t, int> seen;
  for (const ops::SampleOutput& out : samples.outputs) ++seen[out.token];
  EXPECT_EQ(seen.size(), 5u);
  EXPECT_EQ(samples.outputs[0].token, samples.outputs[5].token);
}

TEST(Sampler, PenaltiesCountPromptAndOutput) {
  Samples samples(1, 4);
  samples.counts = {kInPrompt, 2, kInPrompt | 1, 0};
  SampleSpec spec = Greedy();
  spec.repetition_penalty = 2.0f;
  samples.Add({3.0f, 2.5f, 2.4f, 1.6f}) = spec;  // 1.5, 1.25, 1.2, 1.6
  samples.Run();
  EXPECT_EQ(samples.outputs[0].token, 3);
  EXPECT_EQ(samples.counts[3], 1u);  // the op counts what it draws

  Samples negative(1, 2);
  negative.counts = {1, 0};
  negative.Add({-1.0f, -1.9f}) = spec;  // -2, -1.9
  negative.Run();
  EXPECT_EQ(negative.outputs[0].token, 1);

  Samples presence(1, 3);
  presence.counts = {kInPrompt, 3, 0};
  spec = Greedy();
  spec.presence_penalty = 1.0f;  // prompts do not count: 2, 1.5, 1.9
  presence.Add({2.0f, 2.5f, 1.9f}) = spec;
  presence.Run();
  EXPECT_EQ(presence.outputs[0].token, 0);

  Samples frequency(1, 3);
  frequency.counts = {1, 3, 0};
  spec = Greedy();
  spec.frequency_penalty = 0.5f;  // 1.5, 1.5 - 0.1, 1.45
  frequency.Add({2.0f, 2.9f, 1.45f}) = spec;
  frequency.Run();
  EXPECT_EQ(frequency.outputs[0].token, 0);
}

TEST(Sampler, CountsAreOfTheSamplesSlotAndOnlyWithPenalties) {
  Samples samples(1, 2);
  samples.counts = {0, 0, 0, 0};
  samples.Add({1, 0}) = Greedy();
  SampleSpec spec = Greedy();
  spec.slot = 1;
  spec.presence_penalty = 0.1f;
  samples.Add({1, 0}) = spec;
  samples.Run();
  EXPECT_EQ(samples.counts, (std::vector<uint32_t>{0, 0, 1, 0}));
}

TEST(Sampler, BiasBansAndLists) {
  Samples samples(2, 5);
  samples.bias_tokens = {4, 0};
  samples.bias_values = {10.0f, -std::numeric_limits<float>::infinity()};
  samples.allowed = {3, 2, 3};
  SampleSpec spec = Greedy();
  samples.Add({9, 1, 2, 3, 0}) = spec;
  spec.bias_end = 1;
  samples.Add({9, 1, 2, 3, 0}) = spec;
  spec.bias_begin = 1;
  spec.bias_end = 2;
  samples.Add({9, 1, 2, 3, 0}) = spec;
  spec = Greedy();
  spec.only_listed = true;
  spec.allowed_end = 3;
  samples.Add({9, 1, 2, 3, 0}) = spec;
  spec.temperature = 5;
  spec.allowed_end = 2;
  samples.Add({9, 1, 2, 2, 0}) = spec;
  samples.Run();
  EXPECT_EQ(samples.outputs[0].token, 0);
  EXPECT_EQ(samples.outputs[1].token, 4);
  EXPECT_EQ(samples.outputs[2].token, 3);
  EXPECT_EQ(samples.outputs[3].token, 3);
  EXPECT_THAT(samples.outputs[4].token, ::testing::AnyOf(2, 3));
}

TEST(Sampler, ARowThatIsNotFiniteEndsAloneAndItsNeighboursDoNotNotice) {
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(),
                       std::numeric_limits<float>::infinity(),
                       -std::numeric_limits<float>::infinity()};
  for (const float value : bad) {
    Samples samples(2, 6);
    samples.Add({1, 2, 3, 4, 5, 6}) = Greedy();
    samples.Add({1, 2, 3, 4, value, 6}) = Greedy();
    samples.Add({6, 2, 3, 4, 5, 1}) = Greedy();
    samples.Run();
    EXPECT_EQ(samples.outputs[0].token, 5);
    EXPECT_EQ(samples.outputs[1].finite, 0);
    EXPECT_EQ(samples.outputs[1].token, 0);
    EXPECT_EQ(samples.outputs[2].token, 0);
    EXPECT_EQ(samples.outputs[2].finite, 1);
  }
}

TEST(Sampler, ARowWhoseEveryTokenIsBannedDrawsNothing) {
  Samples samples(1, 2);
  samples.bias_tokens = {0, 1};
  samples.bias_values = {-std::numeric_limits<float>::infinity(),
                         -std::numeric_limits<float>::infinity()};
  SampleSpec spec;
  spec.bias_end = 2;
  samples.Add({1, 2}) = spec;
  samples.Run();
  EXPECT_EQ(samples.outputs[0].finite, 0);
}

TEST(Sampler, LogprobsAreTheLogSoftmaxOfTheRawLogits) {
  constexpr int32_t kVocabulary = 500;
  const std::vector<float> logits = RandomLogits(12, kVocabulary, 4.0f);
  Samples samples(4, kVocabulary);
  samples.bias_tokens = {77};
  samples.bias_values = {100.0f};
  SampleSpec spec = Greedy();
  spec.bias_end = 1;
  spec.num_logprobs = 5;
  samples.Add(logits) = spec;
  spec = SampleSpec{};
  spec.kind = SampleSpec::Kind::kScore;
  spec.target = 123;
  samples.Add(logits) = spec;
  samples.Run();

  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  const auto logprob = [&](int32_t t) { return logits[static_cast<size_t>(t)] - std::log(sum); };
  const auto rank = [&](int32_t t) {
    return static_cast<int32_t>(std::count_if(logits.begin(), logits.end(), [&](float v) {
      return v >= logits[static_cast<size_t>(t)];
    }));
  };
  EXPECT_EQ(samples.outputs[0].token, 77);
  EXPECT_NEAR(samples.outputs[0].logprob, logprob(77), 2e-6);
  EXPECT_EQ(samples.outputs[0].rank, rank(77));
  EXPECT_EQ(samples.outputs[1].token, 123);
  EXPECT_NEAR(samples.outputs[1].logprob, logprob(123), 2e-6);
  std::vector<int32_t> order(kVocabulary);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(samples.top_tokens[i], order[i]);
    EXPECT_NEAR(samples.top_logprobs[i], logprob(order[i]), 2e-6);
  }
}

TEST(Sampler, EqualsAreRankedAsVllmDoesAndListedByLowestId) {
  Samples samples(1, 4);
  SampleSpec spec;
  spec.kind = SampleSpec::Kind::kScore;
  spec.target = 1;
  spec.num_logprobs = 3;
  samples.Add({2, 2, 5, 2}) = spec;
  samples.Run();
  EXPECT_EQ(samples.outputs[0].rank, 4);
  EXPECT_EQ(samples.top_tokens[0], 2);
  EXPECT_EQ(samples.top_tokens[1], 0);
  EXPECT_EQ(samples.top_tokens[2], 1);
}

}  // namespace
}  // namespace polyreme::backend
