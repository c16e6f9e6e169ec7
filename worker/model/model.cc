#include "worker/model/model.h"

namespace polyreme::model {
namespace {

// The table of architectures: a new one is a file of its own and a row here.
struct Row {
  plan::ModelSpec::Family family;
  std::unique_ptr<LayerStack> (*make)(const weights::ShardWeights& weights, Tools tools);
};
constexpr Row kTable[] = {
    {plan::ModelSpec::Family::kLlama, MakeLlama},
    {plan::ModelSpec::Family::kQwen2, MakeLlama},  // its biases are in the weights
    {plan::ModelSpec::Family::kQwen3, MakeQwen3},
};

}  // namespace

ops::HeadLayout HeadsOf(const plan::ModelSpec& spec, const plan::Shard& shard) {
  return {.query_heads = shard.query_heads.size(),
          .kv_heads = shard.kv_heads.size(),
          .head_dim = spec.head_dim};
}

absl::StatusOr<Model> MakeModel(const weights::ShardWeights& weights, Tools tools,
                                const ModelOptions& options) {
  if (options.head_chunk_samples < 1) {
    return InvalidArgument("expected at least 1 sample per chunk of the head, got {}",
                           options.head_chunk_samples);
  }
  Model model;
  for (const Row& row : kTable) {
    if (row.family == weights.spec.family) model.layers = row.make(weights, tools);
  }
  if (model.layers == nullptr) {
    return Unimplemented("{}: no layers of this family", weights.spec.architecture);
  }
  if (weights.shard.has_embedding) {
    model.embedding.emplace(tools, *weights.embedding, weights.shard.vocab_rows.begin);
  }
  if (weights.shard.has_head) {
    const Norm norm{weights.final_norm.view(), static_cast<float>(weights.spec.norm_epsilon)};
    model.head.emplace(tools, weights.head(), norm, options.head_chunk_samples);
  }
  return model;
}

}  // namespace polyreme::model
