// Ops on a GPU: each launches its kernels on the lane's stream and turns an error of CUDA into the
// lane's failure.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "worker/backend/cuda/attention.h"
#include "worker/backend/cuda/cuda_device.h"
#include "worker/backend/cuda/element.h"
#include "worker/backend/cuda/products.h"
#include "worker/ops/ops.h"

namespace polyreme::cuda {

// Lanes are CudaLanes of `device`. Weights are of the activations' type.
class CudaOps final : public ops::Ops {
 public:
  // device is borrowed and outlives the ops.
  CudaOps(CudaDevice& device, DType dtype, std::unique_ptr<Products> products,
          std::unique_ptr<Attention> attention);

  absl::Status Prepare(Lane& lane, const ops::Workload& workload) override;
  int64_t WorkspaceBytes(const ops::Workload& workload) const override;
  DType activation_dtype() const override { return dtype_; }

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

  // At least `bytes` of memory for the sampler.
  absl::Status ReserveSampleScratch(int64_t bytes);

  CudaDevice& device_;
  const DType dtype_;
  const Element type_;
  const std::unique_ptr<Products> products_;
  const std::unique_ptr<Attention> attention_;
  Buffer sample_scratch_;
};

}  // namespace polyreme::cuda
