// The narrow door to mathematics. Public methods check shapes and types once, for all backends;
// private ones compute.
//
// Letters as in batch.h; E model width, F feed-forward columns held here, V vocabulary rows held
// here. Activations are float32 on CPU and the model's dtype on a GPU; norms' gains, biases and
// logits are float32 everywhere. Work goes to the lane in order; a lane that has failed makes every
// call a no-op. A wrong shape is our bug and CHECKs.
//
// On CPU one row's bits depend on nothing but the row itself: not on T, not on the tile, not on
// threads or on the instruction set chosen at run time. Each op has a naive double-precision form
// in tests/support/naive_ops.h.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/tensor/device.h"
#include "parallel/tensor/tensor.h"
#include "worker/ops/batch.h"
#include "worker/ops/sampling.h"
#include "worker/weights/weight.h"

namespace polyreme::ops {

// The largest step that will be asked for, so that a backend can take its memory and choose its
// kernels beforehand.
struct Workload {
  int64_t max_tokens = 0;   // T of one step
  int32_t max_rows = 0;     // R
  int64_t max_samples = 0;  // S of one call of Sample
  int32_t max_model_len = 0;
  int32_t tokens_per_block = 0;
  int32_t vocabulary = 0;
  HeadLayout heads;
  DType kv_dtype = DType::kF32;
  // Every weight that MatMul will see, so that algorithms can be timed on the real ones; `rows` is
  // the most that x will have, `out` the type of y.
  struct Product {
    const weights::Weight* weight = nullptr;
    int64_t rows = 0;
    DType out = DType::kF32;
  };
  std::vector<Product> products;
};

class Ops {
 public:
  virtual ~Ops() = default;

  // Once, before the first step on `lane`, at start: takes all memory that the ops will ever need
  // besides the lane's arena, and chooses algorithms. May take seconds, and blocks. From then on no
  // op allocates or synchronises. ResourceExhausted with bytes asked and free.
  virtual absl::Status Prepare(Lane& lane, const Workload& workload) {
    (void)lane, (void)workload;
    return absl::OkStatus();
  }
  // What Prepare will take, known before: for the division of memory. `products` may be empty.
  virtual int64_t WorkspaceBytes(const Workload& workload) const {
    (void)workload;
    return 0;
  }

  // Type of activations (hidden states, q, k, v).
  virtual DType activation_dtype() const = 0;

  // y[t, :] = table[tokens[t] - first_row, :], zeros where the token's row is not held here.
  // y [T, E]; table's rows are [first_row, first_row + V) of the vocabulary.
  void Embed(Lane& lane, const StepBatch& batch, const weights::Weight& table, int64_t first_row,
             TensorView y);
  // y[t, :] = x[t, :] / sqrt(mean(x[t, :]^2) + epsilon) * gain.  Zhang & Sennrich 2019. x, y [T,
  // E]; gain [E] float32.
  void RmsNorm(Lane& lane, ConstTensorView x, ConstTensorView gain, float epsilon, TensorView y);
  // x += delta, then y = RmsNorm(x). All [T, E].
  void AddRmsNorm(Lane& lane, ConstTensorView delta, TensorView x, ConstTensorView gain,
                  float epsilon, TensorView y);
  // x += delta. [T, E].
  void Add(Lane& lane, ConstTensorView delta, TensorView x);
  // x[t, :] += bias. bias [N] float32.
  void AddBias(Lane& lane, ConstTensorView bias, TensorView x);
  // y[T, N] = x[T, K] · w^T. Summed by w's segments in the fixed tree; y may be float32 when
  // activations are not (logits). K == w.cols, N == w.rows.
  void MatMul(Lane& lane, ConstTensorView x, const weights::Weight& w, TensorView y);
  // In place on qkv [T, (H + 2G) D]: RMSNorm of each query head by q_gain [D] and of each key head
  // by k_gain [D].
  void NormHeads(Lane& lane, const HeadLayout& heads, ConstTensorView q_gain,
                 ConstTensorView k_gain, float epsilon, TensorView qkv);
  // Rotates the queries and keys of qkv [T, (H + 2G) D] by their tokens' positions (half-split
  // form, Su et al. 2021), in place, and stores keys and values to the cache at their places.
  void RotateAndStore(Lane& lane, const StepBatch& batch, const HeadLayout& heads,
                      const RopeTable& rope, TensorView qkv, const LayerKv& kv);
  // Once per step, before the first Attend: whatever a backend wants to work out for all layers.
  void PrepareAttention(Lane& lane, const StepBatch& batch, const HeadLayout& heads);
  // y[t, h, :] = softmax over positions j <= positions[t] of scale * q · K[j] times V[j]. q is the
  // first H D columns of qkv; y [T, H D]. Stale or unwritten places of the cache (even NaN) beyond
  // a token's position never matter.
  void Attend(Lane& lane, const StepBatch& batch, const HeadLayout& heads, ConstTensorView qkv,
              const LayerKv& kv, float scale, TensorView y);
  // y[t, f] = silu(x[t, f]) * x[t, F + f]. x [T, 2F], y [T, F].
  void SiluGate(Lane& lane, ConstTensorView x, TensorView y);
  // y[i, :] = x[rows[i], :]. rows is a device array of length y.shape[0].
  void GatherRows(Lane& lane, ConstTensorView x, const int32_t* rows, TensorView y);
  // Copies whole blocks inside one layer's pool.
  void CopyBlocks(Lane& lane, const LayerKv& kv, const BlockMove* moves, int32_t num_moves);
  // Logits to tokens; see sampling.h.
  void Sample(Lane& lane, const SampleBatch& batch);

 private:
  virtual void DoEmbed(Lane& lane, const StepBatch& batch, const weights::Weight& table,
                       int64_t first_row, TensorView y) = 0;
  virtual void DoRmsNorm(Lane& lane, ConstTensorView x, ConstTensorView gain, float epsilon,
                         TensorView y) = 0;
  // The default is Add, then RmsNorm.
  virtual void DoAddRmsNorm(Lane& lane, ConstTensorView delta, TensorView x, ConstTensorView gain,
                            float epsilon, TensorView y);
  virtual void DoAdd(Lane& lane, ConstTensorView delta, TensorView x) = 0;
  virtual void DoAddBias(Lane& lane, ConstTensorView bias, TensorView x) = 0;
  virtual void DoMatMul(Lane& lane, ConstTensorView x, const weights::Weight& w, TensorView y) = 0;
  virtual void DoNormHeads(Lane& lane, const HeadLayout& heads, ConstTensorView q_gain,
                           ConstTensorView k_gain, float epsilon, TensorView qkv) = 0;
  virtual void DoRotateAndStore(Lane& lane, const StepBatch& batch, const HeadLayout& heads,
                                const RopeTable& rope, TensorView qkv, const LayerKv& kv) = 0;
  virtual void DoPrepareAttention(Lane& lane, const StepBatch& batch, const HeadLayout& heads) = 0;
  virtual void DoAttend(Lane& lane, const StepBatch& batch, const HeadLayout& heads,
                        ConstTensorView qkv, const LayerKv& kv, float scale, TensorView y) = 0;
  virtual void DoSiluGate(Lane& lane, ConstTensorView x, TensorView y) = 0;
  virtual void DoGatherRows(Lane& lane, ConstTensorView x, const int32_t* rows, TensorView y) = 0;
  virtual void DoCopyBlocks(Lane& lane, const LayerKv& kv, const BlockMove* moves,
                            int32_t num_moves) = 0;
  virtual void DoSample(Lane& lane, const SampleBatch& batch) = 0;
};

}  // namespace polyreme::ops
