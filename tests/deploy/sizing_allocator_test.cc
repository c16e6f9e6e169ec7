// What is planned is what workers take: whole ranks of dummy models on CPU, counted by the device
// that gave them their memory, against the same arithmetic without any of it.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "deploy/bench/rank_threads.h"
#include "deploy/sizing/launch_plan.h"

namespace polyreme::sizing {
namespace {

struct Tiny {
  const char* name;
  const char* config;
};
// One of each family; odd widths, so that packing pads; biases, norms of heads and tied heads.
constexpr Tiny kModels[] = {
    {"llama", R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 96,
      "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 12,
      "intermediate_size": 200, "vocab_size": 301, "max_position_embeddings": 256,
      "rms_norm_eps": 1e-5, "rope_theta": 1e4, "torch_dtype": "bfloat16",
      "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": false})"},
    {"qwen2", R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 72,
      "num_hidden_layers": 4, "num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 6,
      "intermediate_size": 132, "vocab_size": 512, "max_position_embeddings": 512,
      "rms_norm_eps": 1e-6, "rope_theta": 1e4, "torch_dtype": "float16",
      "use_sliding_window": false, "sliding_window": null, "tie_word_embeddings": true})"},
    {"qwen3", R"({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64,
      "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 16,
      "intermediate_size": 160, "vocab_size": 777, "max_position_embeddings": 128,
      "rms_norm_eps": 1e-6, "rope_theta": 1e4, "torch_dtype": "float32",
      "use_sliding_window": false, "sliding_window": null, "tie_word_embeddings": false})"},
};

struct Layout {
  int32_t shards;
  int32_t stages;
};
struct Limits {
  int32_t max_num_seqs;
  int32_t max_num_batched_tokens;
  int32_t block_size;
  int32_t max_model_len;
  int32_t num_blocks;
  int64_t head_chunk_samples;
};

class Allocator : public testing::TestWithParam<std::tuple<int, int, int>> {};

constexpr Layout kLayouts[] = {{1, 1}, {2, 1}, {4, 1}, {1, 2}, {2, 2}, {1, 4}};
constexpr Limits kLimits[] = {{4, 32, 16, 128, 9, 64}, {17, 300, 8, 100, 40, 3}};

// 3 models x 6 layouts x 2 limits: 36 configurations, up to 4 ranks each.
TEST_P(Allocator, OnCpuTakesExactlyWhatWasPlanned) {
  const Tiny& model = kModels[std::get<0>(GetParam())];
  const Layout& layout = kLayouts[std::get<1>(GetParam())];
  const Limits& limits = kLimits[std::get<2>(GetParam())];
  const auto spec = plan::ParseModelSpec(model.config);
  ASSERT_TRUE(spec.ok()) << spec.status();
  LaunchSettings settings;
  settings.spec = *spec;
  settings.on_gpu = false;
  settings.dtype = settings.kv_dtype = DType::kF32;
  settings.shards = layout.shards;
  settings.stages = layout.stages;
  settings.head_chunk_samples = limits.head_chunk_samples;
  settings.step = {.max_num_seqs = limits.max_num_seqs,
                   .max_num_batched_tokens = limits.max_num_batched_tokens,
                   .block_size = limits.block_size,
                   .max_model_len = limits.max_model_len,
                   .num_blocks = limits.num_blocks};
  const auto plan = MakeLaunchPlan(settings);
  ASSERT_TRUE(plan.ok()) << plan.status();

  const std::string folder =
      testing::TempDir() + "/polyreme-sizing-" + model.name + std::to_string(getpid());
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/config.json") << model.config;
  bench::RankThreadsOptions options;
  options.shards = layout.shards;
  options.stages = layout.stages;
  options.head_chunk_samples = limits.head_chunk_samples;
  options.limits = plan->limits;
  options.format = weights::LoadFormat::kDummy;
  const auto ranks = bench::RankThreads::Start(folder, options);
  std::filesystem::remove_all(folder);
  ASSERT_TRUE(ranks.ok()) << ranks.status();
  for (const RankPlan& rank : plan->ranks) {
    EXPECT_EQ((*ranks)->weight_bytes(rank.rank.value), rank.memory.weights.total())
        << "rank " << rank.rank.value;
    EXPECT_EQ((*ranks)->used_bytes(rank.rank.value), rank.total_bytes)
        << "rank " << rank.rank.value;
    EXPECT_FALSE((*ranks)->device_kind(rank.rank.value).gpu);
  }
}

INSTANTIATE_TEST_SUITE_P(Launches, Allocator,
                         testing::Combine(testing::Range(0, 3), testing::Range(0, 6),
                                          testing::Range(0, 2)),
                         [](const auto& test) {
                           const Layout& layout = kLayouts[std::get<1>(test.param)];
                           return fmt::format("{}Tp{}Pp{}Limits{}",
                                              kModels[std::get<0>(test.param)].name, layout.shards,
                                              layout.stages, std::get<2>(test.param));
                         });

}  // namespace
}  // namespace polyreme::sizing
