// The kernels of the device's sampler, compiled for the host (cuda_on_host.h), against the CPU's
// sampler. What only a GPU can show is in device_sampler_test.cc.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "parallel/base/limits.h"
#include "tests/worker/cuda_on_host.h"
#include "tests/worker/sample_cases.h"
#include "worker/backend/cuda/sample_launch.cuh"

namespace polyreme::backend {
namespace {

namespace sampling = cuda::sampling;
using ops::SampleSpec;
static_assert(sampling::kMaxTops == limits::kMaxLogprobs);

// A sanitizer does not follow fibers that leave by longjmp.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

// As cuda::Sample. Scratch and workspace begin filled with NaN and large counts.
SampleResults RunKernels(const SampleCase& samples) {
  SampleResults results;
  const auto rows = static_cast<size_t>(samples.num_samples);
  results.outputs.resize(rows);
  results.top_tokens.resize(rows * limits::kMaxLogprobs);
  results.top_logprobs.resize(rows * limits::kMaxLogprobs);
  results.counts = samples.counts;
  std::vector<float> workspace(rows * static_cast<size_t>(samples.vocabulary),
                               std::numeric_limits<float>::quiet_NaN());
  const int64_t bytes = cuda::SampleScratchBytes(samples.num_samples, samples.vocabulary);
  std::vector<uint64_t> scratch(static_cast<size_t>(bytes / 8), 0xfefefefefefefefeu);
  cuda::SampleArguments arguments;
  arguments.num_samples = samples.num_samples;
  arguments.vocabulary = samples.vocabulary;
  arguments.shards = samples.shards;
  arguments.columns = samples.columns;
  arguments.logits = samples.logits.data();
  arguments.specs = samples.specs.data();
  arguments.bias_tokens = samples.bias_tokens.data();
  arguments.bias_values = samples.bias_values.data();
  arguments.allowed_tokens = samples.allowed.data();
  arguments.token_counts = results.counts.data();
  arguments.outputs = results.outputs.data();
  arguments.top_tokens = results.top_tokens.data();
  arguments.top_logprobs = results.top_logprobs.data();
  arguments.workspace = workspace.data();
  arguments.scratch = scratch.data();
  sampling::LaunchStages(arguments,
                         [](auto kernel, int blocks, int threads, const auto& a, const auto& s) {
                           on_host::Launch(kernel, blocks, threads, a, s);
                         });
  return results;
}

TEST(SampleMath, RanksOrderByValueThenById) {
  const float values[] = {
      -std::numeric_limits<float>::infinity(), -1e30f, -2.5f, -1e-40f, 0.0f, 1e-40f, 7.0f,
      std::numeric_limits<float>::infinity()};
  for (size_t i = 0; i < std::size(values); ++i) {
    const uint64_t rank = sampling::RankOf(values[i], 5);
    EXPECT_EQ(sampling::ValueOf(rank), values[i]);
    EXPECT_EQ(sampling::TokenOf(rank), 5);
    EXPECT_GT(rank, sampling::RankOf(values[i], 6));
    if (i > 0) {
      EXPECT_GT(rank, sampling::RankOf(values[i - 1], 0));
    }
  }
  EXPECT_EQ(sampling::RankOf(-0.0f, 3), sampling::RankOf(0.0f, 3));
}

TEST(SampleMath, BinsFallWithTheValue) {
  int last = 0;
  for (float y = 0; y > -40; y -= 0.001f) {
    const int bin = sampling::BinOf(y);
    EXPECT_GE(bin, last);
    last = bin;
  }
  EXPECT_EQ(last, sampling::kBins - 1);
  EXPECT_EQ(sampling::BinOf(-3e38f), sampling::kBins - 1);
  EXPECT_EQ(sampling::BinOf(0.0f), 0);
  EXPECT_EQ(sampling::WeightOf(0.0f), uint64_t{1} << 44);
}

TEST(SampleMath, FastNoiseIsCloseEnoughToKnowWhoCannotWin) {
  std::vector<uint32_t> words = {0,          1,          2,          0xffffffff, 0xfffffffe,
                                 0x80000000, 0xf8000000, 0xf7ffffff, 0xf8000001};
  std::mt19937 random(5);
  for (int i = 0; i < 1000000; ++i) words.push_back(static_cast<uint32_t>(random()));
  for (int i = 0; i < 1000; ++i) words.push_back(~static_cast<uint32_t>(i * 37));
  for (const uint32_t word : words) {
    const float fast = sampling::FastGumbelOf(word);
    ASSERT_NEAR(fast, cpu::GumbelOf(word), sampling::kGumbelSlack / 20) << word;
    ASSERT_LT(fast + sampling::kGumbelSlack, sampling::kAboveGumbel);
  }
}

TEST(SampleKernels, DrawWhatTheCpuDraws) {
  if (kSanitized) GTEST_SKIP() << "fibers and sanitizers do not go together";
  int rows = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    for (const int32_t shards : {1, 2, 4}) {
      const int32_t num_samples = 4 + static_cast<int32_t>(seed % 3);
      const auto vocabulary = static_cast<int32_t>(seed % 4 == 0 ? 4 + seed : 17);
      for (const int32_t size : {vocabulary, 1000, 4097}) {
        if (size == 4097 && seed % 4 != 0) continue;
        const SampleCase samples =
            RandomCase(seed * 1000 + static_cast<uint64_t>(shards), shards, size, num_samples);
        if (ExpectSameResults(samples, samples.RunOnCpu(2), RunKernels(samples)) > 0) return;
        rows += num_samples;
      }
    }
  }
  EXPECT_GT(rows, 1000);
}

TEST(SampleKernels, DrawWhatTheCpuDrawsFromAWholeVocabulary) {
  if (kSanitized) GTEST_SKIP() << "fibers and sanitizers do not go together";
  for (uint64_t seed = 0; seed < 6; ++seed) {
    const SampleCase samples = RandomCase(77 + seed, 1 << seed % 3, 76800, 4);
    if (ExpectSameResults(samples, samples.RunOnCpu(2), RunKernels(samples)) > 0) return;
  }
}

// More equal values around the border than can be sorted: the way by the bits of ranks.
TEST(SampleKernels, FindABorderAmongThousandsOfEquals) {
  if (kSanitized) GTEST_SKIP() << "fibers and sanitizers do not go together";
  for (const int32_t vocabulary : {5000, 9001}) {
    SampleCase samples(2, vocabulary, 8);
    for (int64_t s = 0; s < 8; ++s) {
      for (int64_t t = 0; t < vocabulary; ++t) {
        samples.At(s, t) = s % 2 == 0 ? 1.0f : static_cast<float>(t % 3) * 0.5f;
      }
      SampleSpec& spec = samples.specs[static_cast<size_t>(s)];
      spec.seed = static_cast<uint64_t>(s);
      spec.position = static_cast<int32_t>(s * 31);
      spec.slot = static_cast<int32_t>(s);
      if (s % 4 < 2) spec.top_k = 3000 + static_cast<int32_t>(s);
      if (s >= 3) spec.top_p = 0.5f;
    }
    ExpectSameResults(samples, samples.RunOnCpu(2), RunKernels(samples));
  }
}

}  // namespace
}  // namespace polyreme::backend
