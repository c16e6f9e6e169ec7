#include "parallel/plan/model_spec.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "parallel/base/file.h"
#include "parallel/base/json.h"
#include "parallel/base/limits.h"
#include "parallel/plan/config_keys.h"
#include "parallel/plan/config_reader.h"

namespace polyreme::plan {
namespace {

// What an architecture's own class says where a config.json is silent. Sizes never have a default.
struct Architecture {
  std::string_view name;
  ModelSpec::Family family;
  std::array<std::string_view, 2> model_types;  // accepted; the first is its own
  bool optional_kv_heads = false;               // absent: as many as query heads
  bool optional_head_dim = false;               // absent: width / query heads
  bool bias_keys = false;                       // reads attention_bias (q, k, v and o) and mlp_bias
  bool window_without_switch = false;           // sliding_window alone turns the window on
  double rope_theta = 0;                        // 0: no default
};
constexpr Architecture kArchitectures[] = {
    {.name = "LlamaForCausalLM",
     .family = ModelSpec::Family::kLlama,
     .model_types = {"llama", "iquestcoder"},
     .optional_kv_heads = true,
     .optional_head_dim = true,
     .bias_keys = true,
     .rope_theta = 10000.0},
    {.name = "MistralForCausalLM",
     .family = ModelSpec::Family::kLlama,
     .model_types = {"mistral", "mistral"},
     .optional_head_dim = true,
     .window_without_switch = true,
     .rope_theta = 10000.0},
    // Relabelled checkpoints exist, because some servers need the label; the layers are Llama's.
    {.name = "IQuestCoderForCausalLM",
     .family = ModelSpec::Family::kLlama,
     .model_types = {"iquestcoder", "llama"},
     .bias_keys = true},
    {.name = "Qwen2ForCausalLM",
     .family = ModelSpec::Family::kQwen2,
     .model_types = {"qwen2", "qwen2"},
     .optional_head_dim = true},
    {.name = "Qwen3ForCausalLM",
     .family = ModelSpec::Family::kQwen3,
     .model_types = {"qwen3", "qwen3"}},
};

std::string KnownArchitectures() {
  std::string names;
  for (const Architecture& row : kArchitectures) {
    if (!names.empty()) names += ", ";
    names += row.name;
  }
  return names;
}

absl::StatusOr<const Architecture*> FindArchitecture(const ConfigReader& config, ModelSpec& spec) {
  const Json* names = config.Find("architectures");
  if (names == nullptr || !names->is_array() || names->as_array().size() != 1 ||
      !names->as_array()[0].is_string()) {
    return InvalidArgument("{}: expected a list of one name, one of {}",
                           config.PathOf("architectures"), KnownArchitectures());
  }
  spec.architecture = names->as_array()[0].as_string();
  ASSIGN_OR_RETURN(spec.model_type, config.String("model_type"));
  for (const Architecture& row : kArchitectures) {
    if (row.name != spec.architecture) continue;
    if (spec.model_type == row.model_types[0] || spec.model_type == row.model_types[1]) return &row;
    return InvalidArgument("{}: expected {} with architecture {}, got '{:.40}'",
                           config.PathOf("model_type"), row.model_types[0], row.name,
                           spec.model_type);
  }
  return InvalidArgument("{}: expected one of {}, got '{:.80}'", config.PathOf("architectures"),
                         KnownArchitectures(), spec.architecture);
}

absl::Status ParseSizes(const ConfigReader& config, const Architecture& row, ModelSpec& spec) {
  ASSIGN_OR_RETURN(spec.num_layers, config.Int("num_hidden_layers", {1, limits::kMaxLayers}));
  ASSIGN_OR_RETURN(spec.width, config.Int("hidden_size", {1, limits::kMaxModelWidth}));
  ASSIGN_OR_RETURN(spec.num_query_heads, config.Int("num_attention_heads", {1, limits::kMaxHeads}));
  const IntBounds kv_bounds{1, spec.num_query_heads};
  if (row.optional_kv_heads) {
    ASSIGN_OR_RETURN(spec.num_kv_heads,
                     config.IntOr("num_key_value_heads", kv_bounds, spec.num_query_heads));
  } else {
    ASSIGN_OR_RETURN(spec.num_kv_heads, config.Int("num_key_value_heads", kv_bounds));
  }
  if (spec.num_query_heads % spec.num_kv_heads != 0) {
    return InvalidArgument("{}: expected a divisor of num_attention_heads ({}), got {}",
                           config.PathOf("num_key_value_heads"), spec.num_query_heads,
                           spec.num_kv_heads);
  }
  ASSIGN_OR_RETURN(const std::optional<int64_t> head_dim,
                   config.FindInt("head_dim", {2, limits::kMaxHeadDim}));
  if (!head_dim.has_value() && (!row.optional_head_dim || spec.width % spec.num_query_heads != 0)) {
    return InvalidArgument("{}: expected this key, it is missing", config.PathOf("head_dim"));
  }
  spec.head_dim = head_dim.value_or(spec.width / spec.num_query_heads);
  if (spec.head_dim % 2 != 0 || spec.head_dim > limits::kMaxHeadDim) {
    return InvalidArgument("{}: expected an even number up to {}, got {}",
                           config.PathOf("head_dim"), limits::kMaxHeadDim, spec.head_dim);
  }
  ASSIGN_OR_RETURN(spec.ffn_width, config.Int("intermediate_size", {1, limits::kMaxModelWidth}));
  ASSIGN_OR_RETURN(spec.vocabulary, config.Int("vocab_size", {1, limits::kMaxVocabulary}));
  ASSIGN_OR_RETURN(spec.max_positions,
                   config.Int("max_position_embeddings", {1, limits::kMaxPositions}));
  return absl::OkStatus();
}

// Dropping a bias or a norm that the checkpoint has would be caught by its tensors' names; adding
// one too. Keys still win: a config that asks for what its class does not do is refused.
absl::Status ParseBiases(const ConfigReader& config, const Architecture& row, ModelSpec& spec) {
  ASSIGN_OR_RETURN(const bool attention_bias, config.BoolOr("attention_bias", false));
  ASSIGN_OR_RETURN(const bool mlp_bias, config.BoolOr("mlp_bias", false));
  if (mlp_bias && !row.bias_keys) {
    return InvalidArgument("{}: expected false with {}, got true", config.PathOf("mlp_bias"),
                           row.name);
  }
  spec.mlp_bias = mlp_bias;
  switch (spec.family) {
    case ModelSpec::Family::kLlama:
      if (attention_bias && !row.bias_keys) {
        return InvalidArgument("{}: expected false with {}, got true",
                               config.PathOf("attention_bias"), row.name);
      }
      spec.qkv_bias = spec.attention_out_bias = attention_bias;
      break;
    case ModelSpec::Family::kQwen2:
      spec.qkv_bias = true;  // always, and never on o_proj: the class does not read attention_bias
      break;
    case ModelSpec::Family::kQwen3:
      spec.qk_norm = true;
      spec.qkv_bias = spec.attention_out_bias = attention_bias;
      break;
  }
  return absl::OkStatus();
}

// A window that is at least as long as the context never hides anything, so it is no window.
absl::Status CheckWindow(const ConfigReader& config, const Architecture& row,
                         const ModelSpec& spec) {
  ASSIGN_OR_RETURN(const bool switched_on, config.BoolOr("use_sliding_window", false));
  ASSIGN_OR_RETURN(const std::optional<int64_t> window,
                   config.FindInt("sliding_window", {0, int64_t{1} << 40}));
  // MistralConfig's own default is 4096; only a null in the file turns it off.
  const bool absent = config.object().Find("sliding_window") == nullptr;
  const int64_t length = window.value_or(row.window_without_switch && absent ? 4096 : 0);
  const bool reaches_all = length >= spec.max_positions;
  const bool stated = window.has_value() || (row.window_without_switch && absent);
  if (stated && !reaches_all && (row.window_without_switch || switched_on)) {
    return InvalidArgument(
        "{}: expected null or at least max_position_embeddings ({}), got {}: sliding-window "
        "attention is not implemented",
        config.PathOf("sliding_window"), spec.max_positions, length);
  }
  const Json* types = config.Find("layer_types");
  if (types == nullptr) return absl::OkStatus();
  if (!types->is_array() || static_cast<int64_t>(types->as_array().size()) != spec.num_layers) {
    return InvalidArgument("{}: expected a list of {} names", config.PathOf("layer_types"),
                           spec.num_layers);
  }
  for (const Json& type : types->as_array()) {
    if (type.is_string() && type.as_string() == "full_attention") continue;
    return InvalidArgument("{}: expected only full_attention, got {:.60}",
                           config.PathOf("layer_types"), type.Dump());
  }
  return absl::OkStatus();
}

absl::Status ParseDTypeKey(const ConfigReader& config, ModelSpec& spec) {
  std::string_view key = "dtype";
  ASSIGN_OR_RETURN(std::optional<std::string> name, config.FindString(key));
  if (!name.has_value()) {
    key = "torch_dtype";
    ASSIGN_OR_RETURN(name, config.FindString(key));
  }
  if (!name.has_value() || *name == "auto") return absl::OkStatus();
  absl::StatusOr<DType> dtype = ParseDType(*name);
  if (!dtype.ok() || !IsFloat(*dtype)) {
    return InvalidArgument("{}: expected float32, float16 or bfloat16, got '{:.40}'",
                           config.PathOf(key), *name);
  }
  spec.dtype = *dtype;
  return absl::OkStatus();
}

// One token id or a list of them; empty if absent or null.
absl::StatusOr<std::vector<int32_t>> ParseTokens(const ConfigReader& config, std::string_view key,
                                                 int64_t vocabulary) {
  std::vector<int32_t> tokens;
  const Json* value = config.Find(key);
  if (value == nullptr) return tokens;
  const Json::Array ids = value->is_array() ? value->as_array() : Json::Array{*value};
  for (const Json& id : ids) {
    if (!id.is_int() || id.as_int() < 0 || id.as_int() >= vocabulary) {
      return InvalidArgument("{}: expected token ids from 0 to {}, got {:.40}", config.PathOf(key),
                             vocabulary - 1, id.Dump());
    }
    const int32_t token = static_cast<int32_t>(id.as_int());
    if (std::find(tokens.begin(), tokens.end(), token) == tokens.end()) tokens.push_back(token);
  }
  if (static_cast<int32_t>(tokens.size()) > limits::kMaxStopTokens) {
    return InvalidArgument("{}: expected at most {} token ids, got {}", config.PathOf(key),
                           limits::kMaxStopTokens, tokens.size());
  }
  return tokens;
}

absl::StatusOr<Json> ParseObject(std::string_view text, std::string_view file) {
  absl::StatusOr<Json> json = Json::Parse(
      text, {.depth_max = limits::kMaxJsonDepth, .bytes_max = limits::kMaxConfigFileBytes});
  if (!json.ok()) return Annotate(json.status(), file);
  if (!json->is_object()) {
    return InvalidArgument("{}: expected an object, got {}", file, json->type_name());
  }
  return json;
}

}  // namespace

absl::StatusOr<ModelSpec> ParseModelSpec(std::string_view config_json,
                                         std::vector<std::string>* notes) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(config_json, "config.json"));
  const ConfigReader config(json, "config.json: ");
  ModelSpec spec;
  ASSIGN_OR_RETURN(const Architecture* const row, FindArchitecture(config, spec));
  spec.family = row->family;
  RETURN_IF_ERROR(CheckConfigKeys(config, notes));
  RETURN_IF_ERROR(ParseSizes(config, *row, spec));
  RETURN_IF_ERROR(ParseBiases(config, *row, spec));
  RETURN_IF_ERROR(CheckWindow(config, *row, spec));
  RETURN_IF_ERROR(ParseDTypeKey(config, spec));
  ASSIGN_OR_RETURN(spec.norm_epsilon, config.Double("rms_norm_eps", {0.0, 0.1}));
  ASSIGN_OR_RETURN(spec.tied_head, config.BoolOr("tie_word_embeddings", false));
  ASSIGN_OR_RETURN(const std::optional<std::string> activation, config.FindString("hidden_act"));
  if (activation.has_value() && *activation != "silu" && *activation != "swish") {
    return InvalidArgument("{}: expected silu, got '{:.40}'", config.PathOf("hidden_act"),
                           *activation);
  }
  ASSIGN_OR_RETURN(spec.rope, ParseRope(config, {.theta = row->rope_theta,
                                                 .max_positions = spec.max_positions}));
  if (spec.rope.type == RopeSpec::Type::kYarn) {
    // Recipes add yarn to a config.json without raising max_position_embeddings: the stretched
    // context counts.
    const double stretched =
        static_cast<double>(spec.rope.original_max_positions) * spec.rope.factor;
    spec.max_positions = std::max(
        spec.max_positions,
        static_cast<int64_t>(std::min<double>(std::floor(stretched), limits::kMaxPositions)));
  }
  ASSIGN_OR_RETURN(spec.eos_tokens, ParseTokens(config, "eos_token_id", spec.vocabulary));
  ASSIGN_OR_RETURN(const std::optional<int64_t> bos,
                   config.FindInt("bos_token_id", {0, spec.vocabulary - 1}));
  if (bos.has_value()) spec.bos_token = static_cast<int32_t>(*bos);
  return spec;
}

absl::StatusOr<std::vector<int32_t>> ParseGenerationEosTokens(std::string_view generation_json,
                                                              int64_t vocabulary) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(generation_json, "generation_config.json"));
  return ParseTokens(ConfigReader(json, "generation_config.json: "), "eos_token_id", vocabulary);
}

absl::StatusOr<ModelSpec> ReadModelSpec(const std::string& directory,
                                        std::vector<std::string>* notes) {
  ASSIGN_OR_RETURN(const std::string config,
                   ReadFile(directory + "/config.json", limits::kMaxConfigFileBytes));
  absl::StatusOr<ModelSpec> spec = ParseModelSpec(config, notes);
  if (!spec.ok()) return Annotate(spec.status(), directory);
  const std::string generation_path = directory + "/generation_config.json";
  const absl::StatusOr<std::string> generation =
      ReadFile(generation_path, limits::kMaxConfigFileBytes);
  if (absl::IsNotFound(generation.status())) return spec;
  RETURN_IF_ERROR(generation.status());
  absl::StatusOr<std::vector<int32_t>> eos =
      ParseGenerationEosTokens(*generation, spec->vocabulary);
  if (!eos.ok()) return Annotate(eos.status(), directory);
  if (!eos->empty()) spec->eos_tokens = *std::move(eos);
  return spec;
}

int64_t NumEmbeddingParameters(const ModelSpec& spec) {
  return spec.vocabulary * spec.width;
}

int64_t NumLayerParameters(const ModelSpec& spec) {
  const int64_t query = spec.num_query_heads * spec.head_dim;
  const int64_t kv = spec.num_kv_heads * spec.head_dim;
  int64_t count = spec.width * (query + 2 * kv) + query * spec.width;
  count += 3 * spec.width * spec.ffn_width + 2 * spec.width;
  if (spec.qkv_bias) count += query + 2 * kv;
  if (spec.attention_out_bias) count += spec.width;
  if (spec.mlp_bias) count += 2 * spec.ffn_width + spec.width;
  if (spec.qk_norm) count += 2 * spec.head_dim;
  return count;
}

int64_t NumParameters(const ModelSpec& spec) {
  const int64_t tables = spec.tied_head ? 1 : 2;
  return spec.num_layers * NumLayerParameters(spec) + tables * NumEmbeddingParameters(spec) +
         spec.width;
}

}  // namespace polyreme::plan
