#include "parallel/plan/config_keys.h"

#include <algorithm>
#include <span>
#include <string_view>

namespace polyreme::plan {
namespace {

// clang-format off
// Read by ParseModelSpec and ParseRope.
constexpr std::string_view kRead[] = {
    "architectures", "model_type", "num_hidden_layers", "hidden_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size",
    "max_position_embeddings", "rms_norm_eps", "attention_bias", "mlp_bias",
    "tie_word_embeddings", "hidden_act", "torch_dtype", "dtype", "eos_token_id", "bos_token_id",
    "rope_theta", "rope_scaling", "rope_parameters", "use_sliding_window", "sliding_window",
    "layer_types"};

// For training, for other tools, or for generation defaults that requests set themselves.
constexpr std::string_view kInert[] = {
    "transformers_version", "_name_or_path", "name_or_path", "auto_map", "use_cache",
    "initializer_range", "attention_dropout", "hidden_dropout", "hidden_dropout_prob",
    "embd_pdrop", "resid_pdrop", "attn_pdrop", "dropout", "pad_token_id", "unk_token_id",
    "sep_token_id", "cls_token_id", "decoder_start_token_id", "pretraining_tp", "max_window_layers",
    "gradient_checkpointing", "return_dict", "output_attentions", "output_hidden_states",
    "id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params",
    "tokenizer_class", "attn_implementation", "_attn_implementation", "_flash_attn_2_enabled",
    "unsloth_version", "unsloth_fixed", "max_length", "min_length", "do_sample", "temperature",
    "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "num_beams",
    "num_beam_groups", "diversity_penalty", "encoder_no_repeat_ngram_size",
    "no_repeat_ngram_size", "num_return_sequences", "early_stopping", "chunk_size_feed_forward",
    "torchscript", "tf_legacy_loss", "use_bfloat16", "is_decoder", "prefix",
    "begin_suppress_tokens", "suppress_tokens", "bad_words_ids", "forced_bos_token_id",
    "forced_eos_token_id", "exponential_decay_length_penalty", "remove_invalid_values",
    "output_scores", "return_dict_in_generate", "keys_to_ignore_at_inference"};
// clang-format on

// What the value must be for the key to change nothing. Null, false and absent are always fine.
enum class Harmless { kNothing, kZero, kOne, kZeroOrOne, kEmpty };
struct DangerousKey {
  std::string_view key;
  Harmless harmless = Harmless::kNothing;
};
constexpr DangerousKey kDangerous[] = {
    // Weights that are not what their names say.
    {"quantization_config", Harmless::kNothing},
    {"compression_config", Harmless::kNothing},
    // Another attention.
    {"clip_qkv", Harmless::kNothing},
    {"attention_chunk_size", Harmless::kNothing},
    {"attn_logit_softcapping", Harmless::kNothing},
    {"query_pre_attn_scalar", Harmless::kNothing},
    {"attention_multiplier", Harmless::kOne},
    {"qk_layernorm", Harmless::kNothing},
    {"use_qk_norm", Harmless::kNothing},
    {"kv_lora_rank", Harmless::kNothing},
    {"q_lora_rank", Harmless::kNothing},
    {"alibi", Harmless::kNothing},
    {"no_rope_layers", Harmless::kEmpty},
    {"no_rope_layer_interval", Harmless::kZero},
    {"num_kv_shared_layers", Harmless::kZero},
    {"use_mrope", Harmless::kNothing},
    {"dual_chunk_attention_config", Harmless::kNothing},
    {"sparse_attention_config", Harmless::kNothing},
    {"partial_rotary_factor", Harmless::kOne},
    {"rotary_pct", Harmless::kOne},
    {"rope_interleaved", Harmless::kNothing},
    {"rope_ratio", Harmless::kOne},
    {"is_encoder_decoder", Harmless::kNothing},
    {"add_cross_attention", Harmless::kNothing},
    {"cross_attention_hidden_size", Harmless::kNothing},
    {"pruned_heads", Harmless::kEmpty},
    // Other layers: mixtures of experts, loops, multipliers, extra heads.
    {"num_local_experts", Harmless::kZeroOrOne},
    {"num_experts", Harmless::kZeroOrOne},
    {"n_routed_experts", Harmless::kZeroOrOne},
    {"num_experts_per_tok", Harmless::kZeroOrOne},
    {"moe_intermediate_size", Harmless::kZero},
    {"loop_num", Harmless::kZeroOrOne},
    {"loop_window_size", Harmless::kZero},
    {"plt_num_loops", Harmless::kZeroOrOne},
    {"num_loops", Harmless::kZeroOrOne},
    {"residual_multiplier", Harmless::kOne},
    {"embedding_multiplier", Harmless::kOne},
    {"scale_emb", Harmless::kOne},
    {"scale_depth", Harmless::kNothing},
    {"logits_scaling", Harmless::kOne},
    {"logit_scale", Harmless::kOne},
    {"final_logit_softcapping", Harmless::kNothing},
    {"text_config", Harmless::kNothing},
    {"vision_config", Harmless::kNothing},
    {"audio_config", Harmless::kNothing},
};

bool IsEmpty(const Json& value) {
  return (value.is_array() && value.as_array().empty()) ||
         (value.is_object() && value.members().empty()) ||
         (value.is_string() && value.as_string().empty());
}

bool IsHarmless(const Json& value, Harmless harmless) {
  if (value.is_null() || (value.is_bool() && !value.as_bool())) return true;
  const bool zero = value.is_number() && value.as_double() == 0.0;
  const bool one = value.is_number() && value.as_double() == 1.0;
  switch (harmless) {
    case Harmless::kNothing:
      return false;
    case Harmless::kZero:
      return zero;
    case Harmless::kOne:
      return one;
    case Harmless::kZeroOrOne:
      return zero || one;
    case Harmless::kEmpty:
      return IsEmpty(value);
  }
  return false;
}

bool Contains(std::span<const std::string_view> keys, std::string_view key) {
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

std::string Shortened(const Json& value) {
  const std::string text = value.Dump();
  return text.size() <= 60 ? text : text.substr(0, 60) + "...";
}

}  // namespace

absl::Status CheckConfigKeys(const ConfigReader& config, std::vector<std::string>* notes) {
  for (const Json::Member& member : config.object().members()) {
    const std::string& key = member.first;
    if (Contains(kRead, key) || Contains(kInert, key)) continue;
    const auto* row = std::find_if(std::begin(kDangerous), std::end(kDangerous),
                                   [&](const DangerousKey& known) { return known.key == key; });
    if (row != std::end(kDangerous)) {
      if (IsHarmless(member.second, row->harmless)) continue;
      return InvalidArgument("{}: this key changes the model and is not implemented (value {})",
                             config.PathOf(key), Shortened(member.second));
    }
    if (notes == nullptr || IsEmpty(member.second)) continue;
    if (IsHarmless(member.second, Harmless::kNothing)) continue;
    notes->push_back(fmt::format("{}: unknown key ignored (value {})", config.PathOf(key),
                                 Shortened(member.second)));
  }
  return absl::OkStatus();
}

}  // namespace polyreme::plan
