// Layout must not change meaning: whatever the ranks, the chunks and the company, the logits have
// the same bits. On a GPU, where kernels differ from one number of rows to another, they are near
// each other, and near the CPU's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <tuple>

#include "tests/worker/checkpoint_builder.h"
#include "tests/worker/model_harness.h"

namespace polyreme::model {
namespace {

using plan::ModelSpec;
using weights::ConfigChanges;

struct ModelCase {
  const char* name;
  ModelSpec::Family family;
  ConfigChanges changes;
  const char* dtype = "F32";
};

std::vector<ModelCase> Cases() {
  const Json llama3 = Json::MakeObject({{"rope_type", "llama3"},
                                        {"factor", 8.0},
                                        {"low_freq_factor", 1.0},
                                        {"high_freq_factor", 4.0},
                                        {"original_max_position_embeddings", 64}});
  const Json yarn = Json::MakeObject(
      {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 128}});
  return {
      {"Llama", ModelSpec::Family::kLlama, {}},
      {"LlamaWithBiases",
       ModelSpec::Family::kLlama,
       {{"attention_bias", true}, {"mlp_bias", true}, {"rope_scaling", llama3}}},
      {"LlamaTiedBf16", ModelSpec::Family::kLlama, {{"tie_word_embeddings", true}}, "BF16"},
      {"LlamaOddSegments",
       ModelSpec::Family::kLlama,
       {{"intermediate_size", 100}, {"num_attention_heads", 4}, {"head_dim", 10}}},
      {"Qwen2", ModelSpec::Family::kQwen2, {{"rope_scaling", yarn}}, "F16"},
      {"Qwen3", ModelSpec::Family::kQwen3, {}},
  };
}

class EachModel : public testing::TestWithParam<std::tuple<ModelCase, TestBackend>> {
 protected:
  void SetUp() override {
    const ModelCase& model = std::get<0>(GetParam());
    const std::string config = weights::TinyConfig(model.family, model.changes);
    const absl::StatusOr<ModelSpec> spec = plan::ParseModelSpec(config);
    ASSERT_TRUE(spec.ok()) << spec.status();
    directory_ =
        weights::WriteCheckpoint(model.name, config, weights::RandomTensors(*spec, model.dtype));
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  const TestBackend& backend() const { return std::get<1>(GetParam()); }
  HarnessLogits Run(HarnessOptions options, const std::vector<HarnessStep>& steps) {
    options.backend = backend();
    return RunOn(options, steps);
  }
  HarnessLogits RunOn(const HarnessOptions& options, const std::vector<HarnessStep>& steps) {
    absl::StatusOr<HarnessLogits> logits = RunModel(directory_, options, steps);
    EXPECT_TRUE(logits.ok()) << logits.status();
    return logits.ok() ? *std::move(logits) : HarnessLogits{};
  }

  // The same bits on the CPU; within the backend's tolerance of the largest logit elsewhere.
  void ExpectSame(const std::vector<float>& got, const std::vector<float>& want) {
    if (!backend().on_gpu()) {
      EXPECT_EQ(got, want);
      return;
    }
    ASSERT_EQ(got.size(), want.size());
    float scale = 0;
    float worst = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_TRUE(std::isfinite(got[i])) << "logit " << i;
      scale = std::max(scale, std::abs(want[i]));
      worst = std::max(worst, std::abs(got[i] - want[i]));
    }
    EXPECT_LE(worst / scale, backend().tolerance());
  }
  void ExpectSame(const HarnessLogits& got, const HarnessLogits& want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t step = 0; step < want.size(); ++step) {
      ASSERT_EQ(got[step].size(), want[step].size());
      for (size_t row = 0; row < want[step].size(); ++row) {
        SCOPED_TRACE(fmt::format("step {}, row {}", step, row));
        ExpectSame(got[step][row], want[step][row]);
      }
    }
  }

  std::string directory_;
};

std::vector<int32_t> Tokens(int32_t count, int32_t salt) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < count; ++i) tokens.push_back((i * i * 37 + salt * 101 + i) % 300);
  return tokens;
}

// Of the last row, so that steps of the prompt compare too.
std::vector<float> Last(const HarnessLogits& logits) {
  return logits.back().back();
}

// Numbers that say something: finite, spread out, and not the same after each token.
void ExpectAlive(const HarnessLogits& logits) {
  for (size_t step = 0; step < logits.size(); ++step) {
    const std::vector<float>& row = logits[step][0];
    ASSERT_EQ(row.size(), 300u);
    for (const float logit : row) ASSERT_TRUE(std::isfinite(logit));
    const auto [least, most] = std::minmax_element(row.begin(), row.end());
    EXPECT_GT(*most - *least, 1.0f);
    if (step > 0) {
      EXPECT_NE(row, logits[step - 1][0]);
    }
  }
}

TEST_P(EachModel, EveryLayoutGivesTheSameBits) {
  const std::vector<HarnessStep> steps = ForcedSteps(Tokens(37, 1), Tokens(5, 2), 100);
  const HarnessLogits alone = Run({}, steps);
  ASSERT_EQ(alone.size(), 5u);
  ExpectAlive(alone);
  int layouts = 0;
  for (const auto& [stages, shards] :
       {std::pair{1, 2}, std::pair{1, 4}, std::pair{1, 8}, std::pair{2, 1}, std::pair{2, 2},
        std::pair{4, 1}, std::pair{3, 2}}) {
    const absl::StatusOr<ModelSpec> spec = plan::ReadModelSpec(directory_);
    if (spec->num_query_heads % shards != 0 || spec->ffn_width % shards != 0) continue;
    if (stages * shards > backend().max_ranks) continue;
    SCOPED_TRACE(fmt::format("tp{}pp{}", shards, stages));
    ExpectSame(Run({.stages = stages, .shards = shards}, steps), alone);
    ++layouts;
  }
  if (!backend().on_gpu()) {
    EXPECT_GE(layouts, 6);
  }
}

TEST_P(EachModel, LogitsAreThoseOfTheCpu) {
  const std::vector<HarnessStep> steps = ForcedSteps(Tokens(41, 6), Tokens(6, 7), 17);
  ExpectSame(Run({.num_threads = 2}, steps), RunOn({}, steps));
}

TEST_P(EachModel, ChunksOfThePromptDoNotMatter) {
  const std::vector<int32_t> prompt = Tokens(50, 3);
  const std::vector<float> whole = Last(Run({}, ForcedSteps(prompt, {}, 100)));
  for (const size_t chunk : {1, 7, 16, 33}) {
    SCOPED_TRACE(fmt::format("chunks of {}", chunk));
    ExpectSame(Last(Run({.num_threads = 2}, ForcedSteps(prompt, {}, chunk))), whole);
  }
}

TEST_P(EachModel, CompanyInTheBatchDoesNotMatter) {
  const HarnessRow row{.slot = 0, .first_position = 0, .tokens = Tokens(21, 4)};
  const HarnessLogits alone = Run({}, {{row}});
  HarnessStep crowd;
  for (int32_t slot = 1; slot < 4; ++slot) {
    crowd.push_back({.slot = slot, .first_position = 0, .tokens = Tokens(5 * slot, slot)});
  }
  crowd.push_back(row);
  const int32_t stages = backend().max_ranks >= 4 ? 2 : 1;
  const int32_t shards = backend().max_ranks >= 2 ? 2 : 1;
  const HarnessLogits together = Run({.stages = stages, .shards = shards}, {crowd});
  ExpectSame(Last(together), Last(alone));
}

TEST_P(EachModel, AStageMayHoldAnyNumberOfLayers) {
  if (backend().max_ranks < 2) GTEST_SKIP() << "two stages want two GPUs";
  const std::vector<HarnessStep> steps = ForcedSteps(Tokens(9, 5), {}, 100);
  HarnessOptions uneven{.stages = 2};
  uneven.plan.layers_per_stage = {3, 1};
  ExpectSame(Run(uneven, steps), Run({}, steps));
}

std::vector<TestBackend> AllBackends() {
  std::vector<TestBackend> all = TestBackends();
  for (const TestBackend& staged : StagedBackends()) all.push_back(staged);
  return all;
}

INSTANTIATE_TEST_SUITE_P(Model, EachModel,
                         testing::Combine(testing::ValuesIn(Cases()),
                                          testing::ValuesIn(AllBackends())),
                         [](const auto& name) {
                           return std::string(std::get<0>(name.param).name) + "_" +
                                  std::get<1>(name.param).name;
                         });

}  // namespace
}  // namespace polyreme::model
