// Models by name against what their authors published and what was worked out by hand.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "deploy/sizing/launch_plan.h"
#include "deploy/sizing/presets.h"

namespace polyreme::sizing {
namespace {

using testing::HasSubstr;

plan::ModelSpec Spec(const std::string& name) {
  const absl::StatusOr<PlannedModel> model = FindModel(name);
  CHECK(model.ok(), "{}", Message(model.status()));
  return model->spec;
}

TEST(Presets, HaveThePublishedNumberOfParametersToTheUnit) {
  // Totals of the checkpoints' safetensors, as their pages show them.
  const std::pair<const char*, int64_t> published[] = {
      {"llama-2-7b", 6'738'415'616},         {"llama-2-13b", 13'015'864'320},
      {"llama-2-70b", 68'976'648'192},       {"llama-3.1-8b", 8'030'261'248},
      {"llama-3.1-70b", 70'553'706'496},     {"llama-3.1-405b", 405'853'388'800},
      {"llama-3.2-1b", 1'235'814'400},       {"llama-3.2-3b", 3'212'749'824},
      {"mistral-7b-v0.3", 7'248'023'552},    {"qwen2.5-coder-7b", 7'615'616'512},
      {"qwen2.5-coder-14b", 14'770'033'664}, {"qwen2.5-coder-32b", 32'763'876'352},
      {"qwen2.5-72b", 72'706'203'648},       {"qwen2.5-coder-1.5b", 1'543'714'304},
      {"qwen3-8b", 8'190'735'360},           {"qwen3-14b", 14'768'307'200},
      {"qwen3-32b", 32'762'123'264},         {"deepseek-coder-6.7b", 6'740'512'768},
      {"deepseek-coder-33b", 33'342'991'360}};
  for (const auto& [name, parameters] : published) {
    EXPECT_EQ(plan::NumParameters(Spec(name)), parameters) << name;
  }
  // Per layer 487,598,080 (q, o 26,214,400 each; k, v 5,242,880; three of 141,557,760; norms
  // 10,240), embedding and head 393,216,000 each, the last norm 5,120.
  EXPECT_EQ(plan::NumParameters(Spec("iquest-coder-v1-40b")), 39'794'283'520);
  EXPECT_EQ(plan::NumParameters(Spec("iquest-coder-v1-14b")), 14'439'183'360);
  EXPECT_EQ(plan::NumParameters(Spec("iquest-coder-v1-7b")), 7'612'810'240);
}

TEST(Presets, AllParseAndAreFoundInAnyCase) {
  EXPECT_GE(PresetNames().size(), 15u);
  for (const std::string_view name : PresetNames()) {
    EXPECT_TRUE(FindModel(std::string(name)).ok()) << name;
  }
  EXPECT_TRUE(FindModel("IQuest-Coder-V1-40B").ok());
  EXPECT_THAT(Message(FindModel("llama-9-9b").status()), HasSubstr("llama-3.1-8b"));
}

TEST(Presets, OfIQuestAreTheConfigurationsOfTheBenchmarks) {
  for (const char* name : {"iquest-coder-v1-7b", "iquest-coder-v1-14b", "iquest-coder-v1-40b"}) {
    const auto bench =
        plan::ReadModelSpec(std::string(POLYREME_SOURCE_DIR) + "/deploy/bench/configs/" + name);
    ASSERT_TRUE(bench.ok()) << bench.status();
    plan::ModelSpec preset = Spec(name);
    // Sizes are what a preset is for; the ids of special tokens come with a tokenizer.
    preset.eos_tokens = bench->eos_tokens;
    preset.bos_token = bench->bos_token;
    EXPECT_EQ(preset, *bench) << name;
  }
}

LaunchPlan OneRank(const std::string& name, const char* gpu = "h200") {
  LaunchSettings settings;
  settings.spec = Spec(name);
  settings.gpu = *GpuTable().Find(gpu);
  settings.step.max_num_batched_tokens = 8192;
  settings.step.max_model_len = 4096;
  const absl::StatusOr<LaunchPlan> plan = MakeLaunchPlan(settings);
  CHECK(plan.ok(), "{}", Message(plan.status()));
  return *plan;
}

TEST(Plan, CountsTheCacheOfATokenAsByHand) {
  // 2 (keys, values) x layers x heads x width of a head x 2 bytes.
  const std::pair<const char*, int64_t> by_hand[] = {{"llama-2-7b", 2 * 32 * 32 * 128 * 2},
                                                     {"llama-3.1-8b", 2 * 32 * 8 * 128 * 2},
                                                     {"mistral-7b-v0.3", 131'072},
                                                     {"qwen2.5-coder-7b", 57'344},
                                                     {"qwen3-8b", 147'456},
                                                     {"deepseek-coder-33b", 253'952},
                                                     {"iquest-coder-v1-7b", 57'344},
                                                     {"iquest-coder-v1-14b", 114'688},
                                                     {"iquest-coder-v1-40b", 327'680}};
  for (const auto& [name, bytes] : by_hand) {
    EXPECT_EQ(OneRank(name).ranks[0].memory.kv_bytes_per_block, 16 * bytes) << name;
  }
}

TEST(Plan, CountsWeightsByPartAsByHand) {
  const weights::WeightBytes bytes = OneRank("llama-3.1-8b").ranks[0].memory.weights;
  EXPECT_EQ(bytes.attention, int64_t{32} * 2 * (4096 * 4096 * 2 + 4096 * 1024 * 2));
  EXPECT_EQ(bytes.ffn, int64_t{32} * 2 * 3 * 4096 * 14336);
  EXPECT_EQ(bytes.tables, int64_t{2} * 2 * 128256 * 4096);
  // Norms are float32; the rope's table has a row for each of 4096 positions.
  EXPECT_EQ(bytes.vectors, int64_t{4} * ((2 * 32 + 1) * 4096 + 4096 * 128));
  // The biases of Qwen2 and the heads' norms of Qwen3.
  EXPECT_EQ(OneRank("qwen2.5-coder-7b").ranks[0].memory.weights.vectors,
            int64_t{4} * (28 * (2 * 3584 + 3584 + 2 * 512) + 3584 + 4096 * 128));
  EXPECT_EQ(OneRank("qwen3-8b").ranks[0].memory.weights.vectors,
            int64_t{4} * (36 * (2 * 4096 + 2 * 128) + 4096 + 4096 * 128));
  // A tied head beside its embedding is the same memory.
  EXPECT_EQ(OneRank("llama-3.2-1b").ranks[0].memory.weights.tables, int64_t{2} * 128256 * 2048);
}

}  // namespace
}  // namespace polyreme::sizing
