// Layout must not change meaning: the same requests give the same tokens and the same
// log-probabilities, bit for bit, on each layout of ranks, in whatever way they are cut into steps.
// This is the test that matters most. On GPUs, recorded or not, the tokens are those of the CPU in
// float32, and the log-probabilities near.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "deploy/bench/rank_threads.h"
#include "tests/worker/checkpoint_builder.h"
#include "tests/worker/hand_scheduler.h"
#include "tests/worker/test_backends.h"

namespace polyreme::run {
namespace {

struct Layout {
  int32_t shards = 1;
  int32_t stages = 1;
};

constexpr int32_t kVocabulary = 300;  // of TinyConfig

step::StepLimits LimitsFor(int32_t stages) {
  return {.num_slots = 12,
          .num_blocks = 80,
          .tokens_per_block = 8,
          .max_step_tokens = 96,
          .max_step_samples = 96,
          .max_model_len = 96,
          .vocabulary = kVocabulary,
          .max_steps_in_flight = stages + 1};
}

std::vector<TokenId> Prompt(int32_t seed, int32_t length) {
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < length; ++i)
    tokens.push_back((seed * 131 + i * i * 17 + i) % kVocabulary);
  return tokens;
}

// One of each way to draw.
std::vector<HandRequest> Requests() {
  step::SamplingParams greedy;
  greedy.temperature = 0;
  greedy.num_logprobs = 4;
  step::SamplingParams drawn;
  drawn.temperature = 0.9f;
  drawn.top_p = 0.95f;
  drawn.top_k = 50;
  drawn.seed = 12345678901234567u;
  drawn.num_logprobs = 2;
  step::SamplingParams penalised = drawn;
  penalised.repetition_penalty = 1.3f;
  penalised.presence_penalty = 0.5f;
  penalised.frequency_penalty = 0.7f;
  step::SamplingParams steered = drawn;
  steered.logit_bias = {{7, 3.0f}, {8, 3.0f}};
  steered.min_tokens = 6;
  steered.stop_tokens = {7};
  steered.min_p = 0.02f;
  step::SamplingParams listed = greedy;
  listed.allowed_tokens = {1, 4, 9, 16, 25};
  return {{Prompt(1, 19), 12, greedy, true, 1},
          {Prompt(2, 33), 10, drawn, false, 3},
          {Prompt(3, 1), 14, penalised, false, 1},
          {Prompt(4, 16), 8, steered, false, 2},
          {Prompt(5, 40), 6, listed, true, 1}};
}

std::vector<HandPolicy> PoliciesFor(int32_t stages) {
  return {{.chunk = 1000, .depth = 1, .cohorts = 1, .alone = true, .block_seed = 1},
          {.chunk = 1, .depth = 2, .cohorts = 1, .alone = false, .block_seed = 2},
          {.chunk = 5, .depth = stages + 1, .cohorts = stages, .alone = false, .block_seed = 3},
          {.chunk = 16, .depth = stages + 1, .cohorts = 1, .alone = true, .block_seed = 4}};
}

std::string Describe(const HandPolicy& policy) {
  return fmt::format("chunks of {}, {} in flight, {} cohorts, {}", policy.chunk, policy.depth,
                     policy.cohorts, policy.alone ? "alone" : "together");
}

constexpr double kLogprobTolerance = 1e-3;  // between backends

// Which of two tokens comes first may differ where they are as likely as each other.
void ExpectNear(const step::SampleResult& expected, const step::SampleResult& got) {
  ASSERT_EQ(expected.finite, got.finite);
  EXPECT_NEAR(expected.logprob, got.logprob, kLogprobTolerance);
  EXPECT_LE(std::abs(expected.rank - got.rank), 1);
  ASSERT_EQ(expected.top.size(), got.top.size());
  for (size_t i = 0; i < expected.top.size(); ++i) {
    EXPECT_NEAR(expected.top[i].logprob, got.top[i].logprob, kLogprobTolerance) << "place " << i;
  }
}

void ExpectSame(const std::vector<HandOutput>& expected, const std::vector<HandOutput>& got,
                bool same_bits) {
  ASSERT_EQ(expected.size(), got.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    SCOPED_TRACE(fmt::format("sequence {}", i));
    ASSERT_EQ(expected[i].outputs.size(), got[i].outputs.size());
    for (size_t t = 0; t < expected[i].outputs.size(); ++t) {
      ASSERT_EQ(expected[i].outputs[t].token, got[i].outputs[t].token) << "output " << t;
    }
    // Log-probabilities, ranks and alternatives too.
    if (same_bits) {
      ASSERT_TRUE(expected[i] == got[i]);
      continue;
    }
    for (size_t t = 0; t < expected[i].outputs.size(); ++t) {
      ExpectNear(expected[i].outputs[t], got[i].outputs[t]);
    }
    ASSERT_EQ(expected[i].prompt_scores.size(), got[i].prompt_scores.size());
    for (size_t t = 0; t < expected[i].prompt_scores.size(); ++t) {
      ExpectNear(expected[i].prompt_scores[t], got[i].prompt_scores[t]);
    }
  }
}

class LayoutTest
    : public ::testing::TestWithParam<std::tuple<plan::ModelSpec::Family, TestBackend>> {
 protected:
  void SetUp() override {
    const plan::ModelSpec::Family family = std::get<0>(GetParam());
    const std::string config = weights::TinyConfig(family);
    const absl::StatusOr<plan::ModelSpec> spec = plan::ParseModelSpec(config);
    ASSERT_TRUE(spec.ok()) << spec.status();
    directory_ = weights::WriteCheckpoint(fmt::format("layout{}", static_cast<int>(family)), config,
                                          weights::RandomTensors(*spec, "BF16"));
  }

  const TestBackend& backend() const { return std::get<1>(GetParam()); }
  // Each layout under each policy against `expected`.
  void ExpectOnLayout(Layout layout, bool eager, const std::vector<HandOutput>& expected);

  // What one rank alone gives on the CPU, one request after another.
  std::vector<HandOutput> Reference() {
    absl::StatusOr<std::vector<HandOutput>> outputs = absl::UnknownError("");
    RankThreadsOptions options;
    options.limits = LimitsFor(1);
    const auto ranks = RankThreads::Start(directory_, options);
    EXPECT_TRUE(ranks.ok()) << ranks.status();
    if (!ranks.ok()) return {};
    outputs = RunByHand(**ranks, options.limits, Requests(), PoliciesFor(1)[0]);
    EXPECT_TRUE(outputs.ok()) << outputs.status();
    return outputs.ok() ? *outputs : std::vector<HandOutput>{};
  }

  std::string directory_;
};

void LayoutTest::ExpectOnLayout(Layout layout, bool eager,
                                const std::vector<HandOutput>& expected) {
  RankThreadsOptions options;
  options.shards = layout.shards;
  options.stages = layout.stages;
  options.limits = LimitsFor(layout.stages);
  options.device = backend().device;
  options.backend = backend().options();
  options.backend.enforce_eager = eager;
  options.patience = absl::Seconds(60);
  const auto ranks = RankThreads::Start(directory_, options);
  ASSERT_TRUE(ranks.ok()) << ranks.status();
  for (const HandPolicy& policy : PoliciesFor(layout.stages)) {
    SCOPED_TRACE(Describe(policy));
    const auto outputs = RunByHand(**ranks, options.limits, Requests(), policy);
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    ExpectSame(expected, *outputs, !backend().on_gpu());
  }
  // Tokens went back without the coordinator, and stages worked at the same time.
  EXPECT_GT((*ranks)->stats(0).fed_back_tokens, 50);
  if (layout.stages > 1) {
    EXPECT_GT((*ranks)->stats(0).overlapped_steps, 0);
  }
}

TEST_P(LayoutTest, EachLayoutGivesTheSameTokensAndLogprobs) {
  const std::vector<HandOutput> expected = Reference();
  ASSERT_EQ(expected.size(), 8u);
  for (const Layout layout : {Layout{1, 1}, Layout{2, 1}, Layout{1, 2}, Layout{4, 1}, Layout{2, 2},
                              Layout{1, 4}, Layout{8, 1}}) {
    if (layout.shards * layout.stages > backend().max_ranks) continue;
    for (const bool eager : {false, true}) {
      if (eager && !backend().on_gpu()) continue;
      SCOPED_TRACE(fmt::format("tp{}pp{}{}", layout.shards, layout.stages, eager ? ", eager" : ""));
      ExpectOnLayout(layout, eager, expected);
    }
  }
}

TEST_P(LayoutTest, OutputsAreWhatWasAskedFor) {
  const std::vector<HandOutput> outputs = Reference();
  ASSERT_EQ(outputs.size(), 8u);
  EXPECT_EQ(outputs[0].prompt_scores.size(), 18u);
  EXPECT_EQ(outputs[0].outputs[0].top.size(), 4u);
  EXPECT_EQ(outputs[0].outputs[0].token, outputs[0].outputs[0].top[0].token);
  EXPECT_EQ(outputs[0].outputs[0].rank, 1);
  EXPECT_FALSE(outputs[1] == outputs[2]);  // choices of one request differ
  for (size_t i = 0; i < 6; ++i) EXPECT_NE(outputs[5].outputs[i].token, 7);  // min_tokens
  for (const step::SampleResult& result : outputs[7].outputs) {
    const std::vector<TokenId> allowed = {1, 4, 9, 16, 25};
    EXPECT_NE(std::find(allowed.begin(), allowed.end(), result.token), allowed.end());
  }
}

INSTANTIATE_TEST_SUITE_P(Families, LayoutTest,
                         ::testing::Combine(::testing::Values(plan::ModelSpec::Family::kLlama,
                                                              plan::ModelSpec::Family::kQwen3),
                                            ::testing::ValuesIn(Float32Backends())),
                         [](const auto& name) {
                           const bool llama =
                               std::get<0>(name.param) == plan::ModelSpec::Family::kLlama;
                           return (llama ? "Llama_" : "Qwen3_") + std::get<1>(name.param).name;
                         });

}  // namespace
}  // namespace polyreme::run
