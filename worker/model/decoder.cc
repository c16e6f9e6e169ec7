#include "worker/model/decoder.h"

#include <cmath>

namespace polyreme::model {

Decoder BindDecoder(const weights::ShardWeights& weights, Tools tools) {
  const plan::ModelSpec& spec = weights.spec;
  Decoder decoder;
  decoder.ops = tools.ops;
  decoder.heads = HeadsOf(spec, weights.shard);
  decoder.rope.cos_sin = {weights.rope.bytes.data(), DType::kF32,
                          Shape{weights.rope_positions, spec.head_dim}};
  decoder.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec.head_dim)));
  decoder.epsilon = static_cast<float>(spec.norm_epsilon);
  decoder.width = spec.width;
  decoder.ffn_columns = weights.shard.ffn_columns.size();
  for (const weights::LayerWeights& w : weights.layers) {
    decoder.layers.push_back({
        .attention_norm = {w.attention_norm.view(), decoder.epsilon},
        .qkv = ColumnLinear(tools, w.qkv, w.qkv_bias),
        .attention_out = RowLinear(tools, w.attention_out, w.attention_out_bias),
        .ffn_norm = {w.ffn_norm.view(), decoder.epsilon},
        .gate_up = ColumnLinear(tools, w.gate_up, w.gate_up_bias),
        .down = RowLinear(tools, w.down, w.down_bias),
        .q_norm = w.q_norm.view(),
        .k_norm = w.k_norm.view(),
    });
  }
  return decoder;
}

DecoderScratch MakeScratch(const Decoder& decoder, Lane& lane, int64_t num_tokens) {
  const DType dtype = decoder.ops->activation_dtype();
  const auto take = [&](int64_t columns) {
    return lane.Scratch(dtype, Shape{num_tokens, columns});
  };
  DecoderScratch s;
  s.h = take(decoder.width);
  s.qkv = take(decoder.heads.columns());
  s.attended = take(decoder.heads.query_heads * decoder.heads.head_dim);
  s.gate_up = take(2 * decoder.ffn_columns);
  s.gated = take(decoder.ffn_columns);
  return s;
}

int64_t LayersScratchBytes(const plan::ModelSpec& spec, const plan::Shard& shard, DType activations,
                           int64_t num_tokens) {
  constexpr int64_t kAlignment = 64;
  constexpr int64_t kTemporaries = 6;  // five of MakeScratch, and the sum inside RowLinear
  const ops::HeadLayout heads = HeadsOf(spec, shard);
  const int64_t columns = 2 * spec.width + heads.columns() + heads.query_heads * heads.head_dim +
                          3 * shard.ffn_columns.size();
  return num_tokens * columns * SizeOf(activations) + kTemporaries * kAlignment;
}

}  // namespace polyreme::model
