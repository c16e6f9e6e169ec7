#include "parallel/plan/model_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "parallel/base/json.h"

namespace polyreme::plan {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::string_view kLlama = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 384,
  "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
  "intermediate_size": 1024, "vocab_size": 8192, "max_position_embeddings": 4096,
  "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
  "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": [0, 2]})";

// kLlama with some keys replaced or added; null removes what a key says.
std::string With(std::initializer_list<std::pair<const char*, Json>> changes) {
  Json json = *Json::Parse(kLlama);
  for (const auto& [key, value] : changes) json.Set(key, value);
  return json.Dump();
}

Json Names(const char* name) {
  return Json(Json::Array{Json(name)});
}

std::string Refusal(const std::string& text) {
  const absl::StatusOr<ModelSpec> spec = ParseModelSpec(text);
  EXPECT_TRUE(absl::IsInvalidArgument(spec.status())) << text << "\n" << spec.status();
  return Message(spec.status());
}

TEST(ModelSpec, ReadsALlama) {
  const absl::StatusOr<ModelSpec> spec = ParseModelSpec(kLlama);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->family, ModelSpec::Family::kLlama);
  EXPECT_EQ(spec->num_layers, 8);
  EXPECT_EQ(spec->width, 384);
  EXPECT_EQ(spec->num_query_heads, 8);
  EXPECT_EQ(spec->num_kv_heads, 4);
  EXPECT_EQ(spec->head_dim, 64);
  EXPECT_EQ(spec->ffn_width, 1024);
  EXPECT_EQ(spec->vocabulary, 8192);
  EXPECT_EQ(spec->max_positions, 4096);
  EXPECT_EQ(spec->norm_epsilon, 1e-5);
  EXPECT_EQ(spec->rope.theta, 500000.0);
  EXPECT_EQ(spec->dtype, DType::kBF16);
  EXPECT_TRUE(spec->tied_head);
  EXPECT_FALSE(spec->qkv_bias || spec->attention_out_bias || spec->mlp_bias || spec->qk_norm);
  EXPECT_THAT(spec->eos_tokens, ElementsAre(0, 2));
  EXPECT_EQ(spec->bos_token, 0);
  EXPECT_EQ(NumParameters(*spec), 17308032);
}

TEST(ModelSpec, Transformers5SpellingsMeanTheSame) {
  const Json rope = Json::MakeObject({{"rope_theta", 500000.0}, {"rope_type", "default"}});
  const std::string text = With({{"torch_dtype", nullptr},
                                 {"dtype", "bfloat16"},
                                 {"rope_theta", nullptr},
                                 {"rope_parameters", rope}});
  ASSERT_TRUE(ParseModelSpec(text).ok());
  EXPECT_EQ(*ParseModelSpec(text), *ParseModelSpec(kLlama));
}

TEST(ModelSpec, LlamaDefaultsAreItsClassesOwn) {
  const absl::StatusOr<ModelSpec> spec = ParseModelSpec(With({{"num_key_value_heads", nullptr},
                                                              {"head_dim", nullptr},
                                                              {"rope_theta", nullptr},
                                                              {"tie_word_embeddings", nullptr},
                                                              {"eos_token_id", 2}}));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->num_kv_heads, 8);
  EXPECT_EQ(spec->head_dim, 48);
  EXPECT_EQ(spec->rope.theta, 10000.0);
  EXPECT_FALSE(spec->tied_head);
  EXPECT_THAT(spec->eos_tokens, ElementsAre(2));
}

TEST(ModelSpec, EachFamilyHasItsBiasesAndNorms) {
  const ModelSpec llama = *ParseModelSpec(With({{"attention_bias", true}, {"mlp_bias", true}}));
  EXPECT_TRUE(llama.qkv_bias && llama.attention_out_bias && llama.mlp_bias);
  const absl::StatusOr<ModelSpec> qwen2 =
      ParseModelSpec(With({{"architectures", Names("Qwen2ForCausalLM")},
                           {"model_type", "qwen2"},
                           {"use_sliding_window", false},
                           {"sliding_window", 1024},
                           {"max_window_layers", 2}}));
  ASSERT_TRUE(qwen2.ok()) << qwen2.status();
  EXPECT_TRUE(qwen2->qkv_bias && !qwen2->attention_out_bias && !qwen2->qk_norm);
  const absl::StatusOr<ModelSpec> qwen3 =
      ParseModelSpec(With({{"architectures", Names("Qwen3ForCausalLM")}, {"model_type", "qwen3"}}));
  ASSERT_TRUE(qwen3.ok()) << qwen3.status();
  EXPECT_TRUE(qwen3->qk_norm && !qwen3->qkv_bias);
  EXPECT_EQ(qwen3->family, ModelSpec::Family::kQwen3);
}

TEST(ModelSpec, ArchitecturesOnLlamasBlockAreLlamas) {
  for (const auto& [architecture, type] : {std::pair{"MistralForCausalLM", "mistral"},
                                           std::pair{"IQuestCoderForCausalLM", "iquestcoder"}}) {
    const absl::StatusOr<ModelSpec> spec =
        ParseModelSpec(With({{"architectures", Names(architecture)},
                             {"model_type", type},
                             {"sliding_window", 4096},
                             {"clip_qkv", nullptr}}));
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_EQ(spec->family, ModelSpec::Family::kLlama);
  }
}

TEST(ModelSpec, SizesHaveNoDefaults) {
  for (const char* key : {"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                          "intermediate_size", "max_position_embeddings", "rms_norm_eps",
                          "model_type", "architectures"}) {
    EXPECT_THAT(Refusal(With({{key, nullptr}})), HasSubstr(key));
  }
}

TEST(ModelSpec, RefusesWhatIsOutOfRangeOrOfAnotherType) {
  for (const Json& bad : {Json(0), Json(-1), Json(int64_t{1} << 60), Json(1.5), Json("8"),
                          Json(true), Json::MakeArray(), Json(1e300)}) {
    for (const char* key :
         {"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
          "intermediate_size", "max_position_embeddings", "num_key_value_heads", "head_dim"}) {
      EXPECT_THAT(Refusal(With({{key, bad}})), HasSubstr(key));
    }
  }
  EXPECT_THAT(Refusal(With({{"num_key_value_heads", 3}})), HasSubstr("num_key_value_heads"));
  EXPECT_THAT(Refusal(With({{"head_dim", 63}})), HasSubstr("head_dim"));
  EXPECT_THAT(Refusal(With({{"rms_norm_eps", -1.0}})), HasSubstr("rms_norm_eps"));
  EXPECT_THAT(Refusal(With({{"tie_word_embeddings", 1}})), HasSubstr("tie_word_embeddings"));
  EXPECT_THAT(Refusal(With({{"torch_dtype", "int8"}})), HasSubstr("torch_dtype"));
  EXPECT_THAT(Refusal(With({{"eos_token_id", 8192}})), HasSubstr("eos_token_id"));
  EXPECT_THAT(Refusal(With({{"bos_token_id", -1}})), HasSubstr("bos_token_id"));
  EXPECT_THAT(Refusal(With({{"hidden_act", "gelu"}})), HasSubstr("hidden_act"));
}

TEST(ModelSpec, RefusesByNameWhatWouldChangeTheResult) {
  const Json quantized = Json::MakeObject({{"quant_method", "awq"}});
  const std::pair<const char*, Json> live[] = {{"clip_qkv", 8.0},
                                               {"quantization_config", quantized},
                                               {"num_local_experts", 8},
                                               {"num_experts", 64},
                                               {"loop_num", 2},
                                               {"partial_rotary_factor", 0.5},
                                               {"attn_logit_softcapping", 50.0},
                                               {"final_logit_softcapping", 30.0},
                                               {"residual_multiplier", 0.22},
                                               {"no_rope_layers", Json(Json::Array{Json(1)})},
                                               {"is_encoder_decoder", true},
                                               {"plt_num_loops", 2}};
  for (const auto& [key, value] : live) {
    EXPECT_THAT(Refusal(With({{key, value}})), HasSubstr(std::string(key) + ": this key changes"));
  }
  EXPECT_TRUE(ParseModelSpec(With({{"clip_qkv", nullptr},
                                   {"loop_num", 1},
                                   {"num_experts", 0},
                                   {"is_encoder_decoder", false}}))
                  .ok());
}

TEST(ModelSpec, RefusesALiveSlidingWindow) {
  const auto mistral = [](Json window) {
    return With({{"architectures", Names("MistralForCausalLM")},
                 {"model_type", "mistral"},
                 {"sliding_window", std::move(window)},
                 {"max_position_embeddings", 32768}});
  };
  EXPECT_THAT(Refusal(mistral(4096)), HasSubstr("sliding_window"));
  EXPECT_TRUE(ParseModelSpec(mistral(nullptr)).ok());
  EXPECT_TRUE(ParseModelSpec(mistral(32768)).ok()) << "a window over all positions hides nothing";
  // MistralConfig without the key means 4096.
  EXPECT_THAT(Refusal(With({{"architectures", Names("MistralForCausalLM")},
                            {"model_type", "mistral"},
                            {"max_position_embeddings", 32768}})),
              HasSubstr("sliding_window"));
  EXPECT_THAT(Refusal(With({{"architectures", Names("Qwen2ForCausalLM")},
                            {"model_type", "qwen2"},
                            {"use_sliding_window", true},
                            {"sliding_window", 1024}})),
              HasSubstr("sliding_window"));
  Json::Array types(8, Json("full_attention"));
  EXPECT_TRUE(ParseModelSpec(With({{"layer_types", types}})).ok());
  types[7] = Json("sliding_attention");
  EXPECT_THAT(Refusal(With({{"layer_types", types}})), HasSubstr("layer_types"));
}

TEST(ModelSpec, RefusesUnknownAndRelabelledArchitectures) {
  EXPECT_THAT(Refusal(With({{"architectures", Names("IQuestLoopCoderForCausalLM")}})),
              HasSubstr("IQuestLoopCoderForCausalLM"));
  EXPECT_THAT(Refusal(With({{"model_type", "iquestloopcoder"}})), HasSubstr("iquestloopcoder"));
  EXPECT_THAT(Refusal(With({{"architectures", Json::MakeArray()}})), HasSubstr("architectures"));
}

TEST(ModelSpec, UnknownKeysAreNotedAndKnownInertOnesAreNot) {
  std::vector<std::string> notes;
  ASSERT_TRUE(ParseModelSpec(With({{"attention_dropout", 0.1},
                                   {"use_cache", true},
                                   {"pretraining_tp", 2},
                                   {"new_trick", 3},
                                   {"off", false}}),
                             &notes)
                  .ok());
  EXPECT_THAT(notes, ElementsAre(HasSubstr("new_trick")));
}

TEST(ModelSpec, YarnStretchesTheContext) {
  const Json yarn = Json::MakeObject(
      {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 4096}});
  const absl::StatusOr<ModelSpec> spec = ParseModelSpec(With({{"rope_scaling", yarn}}));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->max_positions, 16384);
}

TEST(ModelSpec, EveryTruncatedConfigIsRefused) {
  for (size_t length = 0; length < kLlama.size(); ++length) {
    EXPECT_FALSE(ParseModelSpec(kLlama.substr(0, length)).ok()) << length;
  }
}

TEST(ModelSpec, GenerationConfigsEndTokensWin) {
  const std::filesystem::path directory =
      std::filesystem::path(testing::TempDir()) / "polyreme_model_spec";
  std::filesystem::create_directories(directory);
  std::ofstream(directory / "config.json") << kLlama;
  std::filesystem::remove(directory / "generation_config.json");
  EXPECT_THAT(ReadModelSpec(directory.string())->eos_tokens, ElementsAre(0, 2));
  std::ofstream(directory / "generation_config.json") << R"({"eos_token_id": 7})";
  EXPECT_THAT(ReadModelSpec(directory.string())->eos_tokens, ElementsAre(7));
  std::ofstream(directory / "generation_config.json") << R"({"eos_token_id": "x"})";
  EXPECT_THAT(Message(ReadModelSpec(directory.string()).status()),
              HasSubstr("generation_config.json: eos_token_id"));
  std::filesystem::remove_all(directory);
  EXPECT_TRUE(absl::IsNotFound(ReadModelSpec(directory.string()).status()));
}

}  // namespace
}  // namespace polyreme::plan
