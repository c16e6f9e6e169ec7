// Ops on the CPU: deals each op's rows or panels out to the pool; the inner loops are in kernels.h.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/thread_pool.h"
#include "worker/ops/ops.h"

namespace polyreme::backend {

class CpuOps final : public ops::Ops {
 public:
  CpuOps(ThreadPool& pool, const cpu::Kernels& kernels);
  DType activation_dtype() const override { return DType::kF32; }

 private:
  void DoEmbed(Lane& lane, const ops::StepBatch& batch, const weights::Weight& table,
               int64_t first_row, TensorView y) override;
  void DoRmsNorm(Lane& lane, ConstTensorView x, ConstTensorView gain, float epsilon,
                 TensorView y) override;
  void DoAddRmsNorm(Lane& lane, ConstTensorView delta, TensorView x, ConstTensorView gain,
                    float epsilon, TensorView y) override;
  void DoAdd(Lane& lane, ConstTensorView delta, TensorView x) override;
  void DoAddBias(Lane& lane, ConstTensorView bias, TensorView x) override;
  void DoMatMul(Lane& lane, ConstTensorView x, const weights::Weight& w, TensorView y) override;
  void DoNormHeads(Lane& lane, const ops::HeadLayout& heads, ConstTensorView q_gain,
                   ConstTensorView k_gain, float epsilon, TensorView qkv) override;
  void DoRotateAndStore(Lane& lane, const ops::StepBatch& batch, const ops::HeadLayout& heads,
                        const ops::RopeTable& rope, TensorView qkv,
                        const ops::LayerKv& kv) override;
  void DoPrepareAttention(Lane& lane, const ops::StepBatch& batch,
                          const ops::HeadLayout& heads) override;
  void DoAttend(Lane& lane, const ops::StepBatch& batch, const ops::HeadLayout& heads,
                ConstTensorView qkv, const ops::LayerKv& kv, float scale, TensorView y) override;
  void DoSiluGate(Lane& lane, ConstTensorView x, TensorView y) override;
  void DoGatherRows(Lane& lane, ConstTensorView x, const int32_t* rows, TensorView y) override;
  void DoCopyBlocks(Lane& lane, const ops::LayerKv& kv, const ops::BlockMove* moves,
                    int32_t num_moves) override;
  void DoSample(Lane& lane, const ops::SampleBatch& batch) override;

  // body(t) for each row of [0, num_rows), shared out where that pays; floats: what one row reads
  // and writes.
  void ForRows(int64_t num_rows, int64_t floats, absl::FunctionRef<void(int64_t)> body);

  ThreadPool& pool_;
  const cpu::Kernels& kernels_;
  // How this step's attention is dealt out: row r has the tiles of tokens from tile_begins_[r] on,
  // tokens_per_tile each; each tile is done for all kv heads, kv_heads_per_task at a time, and for
  // slices of their query heads.
  std::vector<int64_t> tile_begins_;
  int64_t tokens_per_tile_ = 1;
  int64_t kv_heads_per_task_ = 1;
};

}  // namespace polyreme::backend
