// One stage of a model for one epoch, and the table of architectures.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "parallel/base/status.h"
#include "parallel/tensor/device.h"
#include "parallel/tensor/tensor.h"
#include "worker/kv/kv_cache.h"
#include "worker/model/layers.h"
#include "worker/ops/batch.h"
#include "worker/weights/shard_loader.h"

namespace polyreme::model {

// The layers of one stage: a function over hidden states, in place. Step thread only.
class LayerStack {
 public:
  virtual ~LayerStack() = default;
  // hidden [T, E], of ops.activation_dtype(). ops.PrepareAttention has been called for this batch
  // with heads().
  virtual void Forward(Lane& lane, const ops::StepBatch& batch, const kv::KvCache& cache,
                       TensorView hidden) const = 0;
  virtual const ops::HeadLayout& heads() const = 0;
};

struct Model {
  std::unique_ptr<LayerStack> layers;
  std::optional<VocabEmbedding> embedding;  // first stage
  std::optional<VocabHead> head;            // last stage
};

struct ModelOptions {
  int64_t head_chunk_samples = 64;  // see VocabHead
};

// Heads held by one shard.
ops::HeadLayout HeadsOf(const plan::ModelSpec& spec, const plan::Shard& shard);
// Of the lane's arena, from numbers alone: what a stage's layers take for steps of up to
// num_tokens (T), besides the hidden states and what the ops take themselves.
int64_t LayersScratchBytes(const plan::ModelSpec& spec, const plan::Shard& shard, DType activations,
                           int64_t num_tokens);
// The same for the head, over `shards` parts of the vocabulary, without what the sink takes.
int64_t HeadScratchBytes(const plan::ModelSpec& spec, const plan::Shard& shard, int32_t shards,
                         DType activations, int64_t chunk_samples);

// Binds weights, ops and group, all of which outlive the result. Unimplemented names a family that
// is in no row of the table.
absl::StatusOr<Model> MakeModel(const weights::ShardWeights& weights, Tools tools,
                                const ModelOptions& options);

// Rows of the table; weights and tools as above.
std::unique_ptr<LayerStack> MakeLlama(const weights::ShardWeights& weights, Tools tools);
std::unique_ptr<LayerStack> MakeQwen3(const weights::ShardWeights& weights, Tools tools);

}  // namespace polyreme::model
