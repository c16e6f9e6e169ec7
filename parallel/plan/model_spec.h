// The sizes of a model, read from its config.json, and nothing that is not understood.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/base/status.h"
#include "parallel/plan/rope.h"
#include "parallel/tensor/tensor.h"

namespace polyreme::plan {

struct ModelSpec {
  enum class Family { kLlama, kQwen2, kQwen3 };
  Family family = Family::kLlama;
  std::string architecture;  // as config.json names it
  std::string model_type;
  int64_t num_layers = 0;
  int64_t width = 0;  // hidden_size
  int64_t num_query_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t ffn_width = 0;   // intermediate_size
  int64_t vocabulary = 0;  // vocab_size: rows of embedding and head, columns of the logits
  int64_t max_positions = 0;
  double norm_epsilon = 1e-5;
  bool qkv_bias = false;
  bool attention_out_bias = false;  // of o_proj
  bool mlp_bias = false;
  bool qk_norm = false;  // RMSNorm over each head of q and k before rotation (Qwen3)
  bool tied_head = false;
  RopeSpec rope;
  DType dtype = DType::kBF16;  // what the checkpoint says it is stored in
  std::vector<int32_t> eos_tokens;  // generation_config.json overrides config.json (ReadModelSpec)
  std::optional<int32_t> bos_token;
  friend bool operator==(const ModelSpec&, const ModelSpec&) = default;
};

// From the text of config.json, Transformers 4 and 5 spellings. InvalidArgument names the key:
// missing, of another type, out of range, or one that would change the result and is not
// implemented (live sliding window, clip_qkv, quantization_config, MoE keys, an unknown rope_type
// or architecture, loop_num, ...). notes: if not null, gets a line for each key that is not known
// and was ignored.
absl::StatusOr<ModelSpec> ParseModelSpec(std::string_view config_json,
                                         std::vector<std::string>* notes = nullptr);
// The eos_token_id of a generation_config.json: none, one or several. InvalidArgument as above.
absl::StatusOr<std::vector<int32_t>> ParseGenerationEosTokens(std::string_view generation_json,
                                                              int64_t vocabulary);
// Reads DIR/config.json and, where it is there, DIR/generation_config.json (its eos_token_id wins).
absl::StatusOr<ModelSpec> ReadModelSpec(const std::string& directory,
                                        std::vector<std::string>* notes = nullptr);

// Elements of all tensors; a tied head is counted once.
int64_t NumParameters(const ModelSpec& spec);
// Of one layer, and of the embedding (the head, if it is apart, has as many).
int64_t NumLayerParameters(const ModelSpec& spec);
int64_t NumEmbeddingParameters(const ModelSpec& spec);

}  // namespace polyreme::plan
