// The sizes of a model, read from its config.json, and nothing that is not understood.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/base/status.h"
#include "parallel/tensor/tensor.h"

namespace polyreme::plan {

// Rotary position embedding, half-split form. Frequencies: Su et al. 2021 and the scalings named by rope_type.
struct RopeSpec {
  enum class Type { kDefault, kLinear, kLlama3, kYarn };
  Type type = Type::kDefault;
  double theta = 10000.0;
  double factor = 1.0;                     // all but kDefault
  double low_freq_factor = 1.0;            // kLlama3
  double high_freq_factor = 4.0;           // kLlama3
  double beta_fast = 32.0;                 // kYarn
  double beta_slow = 1.0;                  // kYarn
  double attention_factor = 1.0;           // multiplies cos and sin; already resolved (kYarn's default, mscale)
  int64_t original_max_positions = 0;      // kLlama3, kYarn
  bool truncate = true;                    // kYarn: whole dimensions at the ramp's ends
  friend bool operator==(const RopeSpec&, const RopeSpec&) = default;
};

struct ModelSpec {
  enum class Family { kLlama, kQwen2, kQwen3 };
  Family family = Family::kLlama;
  std::string architecture;                // as config.json names it
  std::string model_type;
  int64_t num_layers = 0;
  int64_t width = 0;                       // hidden_size
  int64_t num_query_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t ffn_width = 0;                   // intermediate_size
  int64_t vocabulary = 0;                  // vocab_size: rows of embedding and head, columns of the logits
  int64_t max_positions = 0;
  double norm_epsilon = 1e-5;
  bool qkv_bias = false;
  bool attention_out_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;                    // RMSNorm over each head of q and k before rotation (Qwen3)
  bool tied_head = false;
  RopeSpec rope;
  DType dtype = DType::kBF16;              // what the checkpoint says it is stored in
  std::vector<int32_t> eos_tokens;         // from config.json; generation_config.json overrides (ReadModelSpec)
  std::optional<int32_t> bos_token;
  friend bool operator==(const ModelSpec&, const ModelSpec&) = default;
};

// From the text of config.json, Transformers 4 and 5 spellings. InvalidArgument names the key: missing, of another type,
// out of range, or one that would change the result and is not implemented (live sliding window, clip_qkv, quantization_config, MoE keys,
// an unknown rope_type or architecture, loop_num, ...).
absl::StatusOr<ModelSpec> ParseModelSpec(std::string_view config_json);
// Reads DIR/config.json and, where it is there, DIR/generation_config.json (its eos_token_id wins).
absl::StatusOr<ModelSpec> ReadModelSpec(const std::string& directory);

// Inverse frequencies [head_dim / 2], after scaling. cos and sin are multiplied by spec.attention_factor.
std::vector<double> InverseFrequencies(const RopeSpec& spec, int64_t head_dim);

int64_t NumParameters(const ModelSpec& spec);

}  // namespace polyreme::plan
