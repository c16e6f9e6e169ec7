#include "deploy/sizing/presets.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "parallel/base/file.h"
#include "parallel/base/json.h"
#include "parallel/base/limits.h"

namespace polyreme::sizing {
namespace {

constexpr char kLlama3Scaling[] =
    R"({"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,)"
    R"("original_max_position_embeddings":8192})";
constexpr char kLlama32Scaling[] =
    R"({"rope_type":"llama3","factor":32.0,"low_freq_factor":1.0,"high_freq_factor":4.0,)"
    R"("original_max_position_embeddings":8192})";
constexpr char kDeepSeekScaling[] = R"({"type":"linear","factor":4.0})";
constexpr char kNoScaling[] = "null";

// As published in each model's config.json.
struct Preset {
  std::string_view name;
  std::string_view architecture;
  std::string_view model_type;
  int32_t layers;
  int32_t width;
  int32_t query_heads;
  int32_t kv_heads;
  int32_t head_dim;
  int32_t ffn_width;
  int32_t vocabulary;
  int32_t positions;
  double rope_theta;
  std::string_view rope_scaling;
  bool tied = false;
  std::string_view dtype = "bfloat16";
};

constexpr std::string_view kLlama = "LlamaForCausalLM";
constexpr std::string_view kQwen2 = "Qwen2ForCausalLM";
constexpr std::string_view kQwen3 = "Qwen3ForCausalLM";
constexpr std::string_view kIQuest = "IQuestCoderForCausalLM";

// clang-format off
constexpr Preset kPresets[] = {
    {"iquest-coder-v1-7b", kIQuest, "iquestcoder", 14, 5120, 40, 8, 128, 27648, 76800, 131072, 5e5, kNoScaling},
    {"iquest-coder-v1-14b", kIQuest, "iquestcoder", 28, 5120, 40, 8, 128, 27648, 76800, 131072, 5e5, kNoScaling},
    {"iquest-coder-v1-40b", kIQuest, "iquestcoder", 80, 5120, 40, 8, 128, 27648, 76800, 131072, 5e5, kNoScaling},
    {"llama-2-7b", kLlama, "llama", 32, 4096, 32, 32, 128, 11008, 32000, 4096, 1e4, kNoScaling, false, "float16"},
    {"llama-2-13b", kLlama, "llama", 40, 5120, 40, 40, 128, 13824, 32000, 4096, 1e4, kNoScaling, false, "float16"},
    {"llama-2-70b", kLlama, "llama", 80, 8192, 64, 8, 128, 28672, 32000, 4096, 1e4, kNoScaling, false, "float16"},
    {"llama-3.1-8b", kLlama, "llama", 32, 4096, 32, 8, 128, 14336, 128256, 131072, 5e5, kLlama3Scaling},
    {"llama-3.1-70b", kLlama, "llama", 80, 8192, 64, 8, 128, 28672, 128256, 131072, 5e5, kLlama3Scaling},
    {"llama-3.1-405b", kLlama, "llama", 126, 16384, 128, 8, 128, 53248, 128256, 131072, 5e5, kLlama3Scaling},
    {"llama-3.2-1b", kLlama, "llama", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 5e5, kLlama32Scaling, true},
    {"llama-3.2-3b", kLlama, "llama", 28, 3072, 24, 8, 128, 8192, 128256, 131072, 5e5, kLlama32Scaling, true},
    {"llama-3.3-70b", kLlama, "llama", 80, 8192, 64, 8, 128, 28672, 128256, 131072, 5e5, kLlama3Scaling},
    {"mistral-7b-v0.3", "MistralForCausalLM", "mistral", 32, 4096, 32, 8, 128, 14336, 32768, 32768, 1e6, kNoScaling},
    {"deepseek-coder-6.7b", kLlama, "llama", 32, 4096, 32, 32, 128, 11008, 32256, 16384, 1e5, kDeepSeekScaling},
    {"deepseek-coder-33b", kLlama, "llama", 62, 7168, 56, 8, 128, 19200, 32256, 16384, 1e5, kDeepSeekScaling},
    {"qwen2.5-coder-1.5b", kQwen2, "qwen2", 28, 1536, 12, 2, 128, 8960, 151936, 32768, 1e6, kNoScaling, true},
    {"qwen2.5-coder-7b", kQwen2, "qwen2", 28, 3584, 28, 4, 128, 18944, 152064, 32768, 1e6, kNoScaling},
    {"qwen2.5-coder-14b", kQwen2, "qwen2", 48, 5120, 40, 8, 128, 13824, 152064, 32768, 1e6, kNoScaling},
    {"qwen2.5-coder-32b", kQwen2, "qwen2", 64, 5120, 40, 8, 128, 27648, 152064, 32768, 1e6, kNoScaling},
    {"qwen2.5-72b", kQwen2, "qwen2", 80, 8192, 64, 8, 128, 29568, 152064, 32768, 1e6, kNoScaling},
    {"qwen3-8b", kQwen3, "qwen3", 36, 4096, 32, 8, 128, 12288, 151936, 40960, 1e6, kNoScaling},
    {"qwen3-14b", kQwen3, "qwen3", 40, 5120, 40, 8, 128, 17408, 151936, 40960, 1e6, kNoScaling},
    {"qwen3-32b", kQwen3, "qwen3", 64, 5120, 64, 8, 128, 25600, 151936, 40960, 1e6, kNoScaling},
};
// clang-format on

std::string Lower(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower;
}

}  // namespace

std::vector<std::string_view> PresetNames() {
  std::vector<std::string_view> names;
  for (const Preset& preset : kPresets) names.push_back(preset.name);
  return names;
}

absl::StatusOr<std::string> PresetConfig(std::string_view name) {
  const std::string wanted = Lower(name);
  for (const Preset& p : kPresets) {
    if (p.name != wanted) continue;
    ASSIGN_OR_RETURN(Json scaling, Json::Parse(p.rope_scaling));
    Json config = Json::MakeObject({{"architectures", Json(Json::Array{Json(p.architecture)})},
                                    {"model_type", p.model_type},
                                    {"num_hidden_layers", p.layers},
                                    {"hidden_size", p.width},
                                    {"num_attention_heads", p.query_heads},
                                    {"num_key_value_heads", p.kv_heads},
                                    {"head_dim", p.head_dim},
                                    {"intermediate_size", p.ffn_width},
                                    {"vocab_size", p.vocabulary},
                                    {"max_position_embeddings", p.positions},
                                    {"rms_norm_eps", 1e-5},
                                    {"rope_theta", p.rope_theta},
                                    {"rope_scaling", std::move(scaling)},
                                    {"hidden_act", "silu"},
                                    {"tie_word_embeddings", p.tied},
                                    {"torch_dtype", p.dtype}});
    // Mistral and Qwen2 say that their window is off only where they name it.
    if (p.architecture != kLlama) {
      config.Set("sliding_window", nullptr);
      config.Set("use_sliding_window", false);
    }
    return config.Dump(Json::Style::kPython);
  }
  return NotFound("expected a model of {}, got '{:.80}'", fmt::join(PresetNames(), ", "), name);
}

absl::StatusOr<PlannedModel> FindModel(const std::string& model) {
  namespace fs = std::filesystem;
  std::error_code error;
  PlannedModel found;
  if (fs::is_directory(model, error)) {
    fs::path path = fs::path(model);
    if (path.filename().empty()) path = path.parent_path();
    found.name = path.filename().string();
    ASSIGN_OR_RETURN(found.spec, plan::ReadModelSpec(model));
    return found;
  }
  if (fs::exists(model, error)) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(model, limits::kMaxConfigFileBytes));
    absl::StatusOr<plan::ModelSpec> spec = plan::ParseModelSpec(text);
    if (!spec.ok()) return Annotate(spec.status(), model);
    found.name = model;
    found.spec = *std::move(spec);
    return found;
  }
  absl::StatusOr<std::string> config = PresetConfig(model);
  if (!config.ok()) {
    return InvalidArgument("MODEL '{:.200}' is no folder, no config.json and no preset: {}", model,
                           Message(config.status()));
  }
  found.name = Lower(model);
  ASSIGN_OR_RETURN(found.spec, plan::ParseModelSpec(*config));
  return found;
}

}  // namespace polyreme::sizing
