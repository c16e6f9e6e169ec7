#include "worker/weights/tensor_names.h"

namespace polyreme::weights {
namespace {

void AppendLayer(const plan::ModelSpec& spec, int64_t layer, std::vector<ExpectedTensor>& all) {
  const auto add = [&](std::string_view part, std::vector<int64_t> shape) {
    all.push_back({LayerTensor(layer, part), std::move(shape)});
  };
  const int64_t query = spec.num_query_heads * spec.head_dim;
  const int64_t kv = spec.num_kv_heads * spec.head_dim;
  add("input_layernorm.weight", {spec.width});
  add("post_attention_layernorm.weight", {spec.width});
  add("self_attn.q_proj.weight", {query, spec.width});
  add("self_attn.k_proj.weight", {kv, spec.width});
  add("self_attn.v_proj.weight", {kv, spec.width});
  add("self_attn.o_proj.weight", {spec.width, query});
  add("mlp.gate_proj.weight", {spec.ffn_width, spec.width});
  add("mlp.up_proj.weight", {spec.ffn_width, spec.width});
  add("mlp.down_proj.weight", {spec.width, spec.ffn_width});
  if (spec.qk_norm) {
    add("self_attn.q_norm.weight", {spec.head_dim});
    add("self_attn.k_norm.weight", {spec.head_dim});
  }
  if (spec.qkv_bias) {
    add("self_attn.q_proj.bias", {query});
    add("self_attn.k_proj.bias", {kv});
    add("self_attn.v_proj.bias", {kv});
  }
  if (spec.attention_out_bias) add("self_attn.o_proj.bias", {spec.width});
  if (spec.mlp_bias) {
    add("mlp.gate_proj.bias", {spec.ffn_width});
    add("mlp.up_proj.bias", {spec.ffn_width});
    add("mlp.down_proj.bias", {spec.width});
  }
}

}  // namespace

std::string LayerTensor(int64_t layer, std::string_view part) {
  return fmt::format("model.layers.{}.{}", layer, part);
}

std::vector<ExpectedTensor> ExpectedTensors(const plan::ModelSpec& spec) {
  std::vector<ExpectedTensor> all;
  all.push_back({std::string(kEmbeddingName), {spec.vocabulary, spec.width}});
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) AppendLayer(spec, layer, all);
  all.push_back({std::string(kFinalNormName), {spec.width}});
  if (!spec.tied_head) all.push_back({std::string(kHeadName), {spec.vocabulary, spec.width}});
  return all;
}

bool IsIgnorable(std::string_view name, const plan::ModelSpec& spec) {
  return name.ends_with(".rotary_emb.inv_freq") || (spec.tied_head && name == kHeadName);
}

}  // namespace polyreme::weights
