// Where mathematics is sharded: linears split by columns and by rows, the embedding and the head
// split by vocabulary.
//
// Each borrows its weights, the ops and the tensor group, all of which outlive it. A layer is made
// anew for each epoch (its group is), the weights are not. Calls put work on the lane, in order;
// step thread only.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/functional/function_ref.h"
#include "parallel/base/ids.h"
#include "parallel/comm/communicator.h"
#include "parallel/tensor/device.h"
#include "parallel/tensor/tensor.h"
#include "worker/ops/ops.h"
#include "worker/weights/shard_loader.h"

namespace polyreme::model {

// What a layer computes with.
struct Tools {
  ops::Ops* ops = nullptr;
  comm::Communicator* tensor_group = nullptr;
};

// RMSNorm with a gain.
struct Norm {
  ConstTensorView gain;  // [E] float32
  float epsilon = 0;
};

// y[T, N] = x[T, K] · wᵀ + bias, N split over shards: each has its own columns, nobody waits.
class ColumnLinear {
 public:
  // bias [N] may be empty.
  ColumnLinear(Tools tools, const weights::Weight& weight, const weights::Vector& bias)
      : tools_(tools), weight_(&weight), bias_(&bias) {}
  void Apply(Lane& lane, const ops::StepBatch& batch, ConstTensorView x, TensorView y) const;

 private:
  Tools tools_;
  const weights::Weight* weight_;
  const weights::Vector* bias_;
};

// The hidden states that a RowLinear adds to, and what comes after.
struct Residual {
  TensorView x;              // [T, E], added to in place
  std::optional<Norm> norm;  // of the next block; nullopt after a stage's last layer
  TensorView normed;         // [T, E], written if there is a norm
};

// y[T, E] = x[T, K] · wᵀ, K split over shards: each has a part of every sum.
class RowLinear {
 public:
  // bias [E] may be empty; it is added once, after the sum.
  RowLinear(Tools tools, const weights::Weight& weight, const weights::Vector& bias)
      : tools_(tools), weight_(&weight), bias_(&bias) {}
  // residual.x += Σ over shards of in · wᵀ, + bias; residual.normed ← norm(residual.x). One door,
  // so that fusing it never touches a model. in [T, K].
  void ApplySumAddNorm(Lane& lane, const ops::StepBatch& batch, ConstTensorView in,
                       const Residual& residual) const;

 private:
  Tools tools_;
  const weights::Weight* weight_;
  const weights::Vector* bias_;
};

// Token ids to hidden states: a shard gives zeros for the rows it does not hold, and the group
// sums.
class VocabEmbedding {
 public:
  VocabEmbedding(Tools tools, const weights::Weight& table, int64_t first_row)
      : tools_(tools), table_(&table), first_row_(first_row) {}
  // hidden [T, E], written.
  void Apply(Lane& lane, const ops::StepBatch& batch, TensorView hidden) const;

 private:
  Tools tools_;
  const weights::Weight* table_;
  int64_t first_row_;
};

// Hidden states to logits, for the S places of a step that are asked for.
class VocabHead {
 public:
  // chunk_samples > 0: how many samples' logits are in memory at once.
  VocabHead(Tools tools, const weights::Weight& table, Norm norm, int64_t chunk_samples)
      : tools_(tools), table_(&table), norm_(norm), chunk_samples_(chunk_samples) {}

  // Takes logits of the samples [samples.begin, samples.end): [shards, n, V] float32, as
  // ops::SampleBatch wants them. The memory is the lane's scratch and is used again after the call.
  using Sink = absl::FunctionRef<void(Range samples, ConstTensorView logits)>;
  // hidden [T, E]. Calls the sink for each chunk, in order, on every shard alike.
  void Apply(Lane& lane, const ops::StepBatch& batch, ConstTensorView hidden, Sink sink) const;

 private:
  Tools tools_;
  const weights::Weight* table_;
  Norm norm_;
  int64_t chunk_samples_;
};

}  // namespace polyreme::model
