#include "worker/model/layers.h"

#include <algorithm>

#include "worker/model/model.h"

namespace polyreme::model {
namespace {

// Gives back, on leaving the block, what was taken from the lane's arena within it.
class ScratchScope {
 public:
  explicit ScratchScope(Lane& lane) : lane_(lane), watermark_(lane.SaveScratch()) {}
  ScratchScope(const ScratchScope&) = delete;
  ScratchScope& operator=(const ScratchScope&) = delete;
  ~ScratchScope() { lane_.RestoreScratch(watermark_); }

 private:
  Lane& lane_;
  const int64_t watermark_;
};

}  // namespace

void ColumnLinear::Apply(Lane& lane, const ops::StepBatch& /*batch*/, ConstTensorView x,
                         TensorView y) const {
  tools_.ops->MatMul(lane, x, *weight_, y);
  if (!bias_->empty()) tools_.ops->AddBias(lane, bias_->view(), y);
}

void RowLinear::ApplySumAddNorm(Lane& lane, const ops::StepBatch& /*batch*/, ConstTensorView in,
                                const Residual& residual) const {
  const ScratchScope scope(lane);
  const TensorView sum = lane.Scratch(residual.x.dtype, residual.x.shape);
  tools_.ops->MatMul(lane, in, *weight_, sum);
  tools_.tensor_group->AllReduceSum(lane, sum);
  if (!bias_->empty()) tools_.ops->AddBias(lane, bias_->view(), sum);
  if (residual.norm.has_value()) {
    tools_.ops->AddRmsNorm(lane, sum, residual.x, residual.norm->gain, residual.norm->epsilon,
                           residual.normed);
  } else {
    tools_.ops->Add(lane, sum, residual.x);
  }
}

void VocabEmbedding::Apply(Lane& lane, const ops::StepBatch& batch, TensorView hidden) const {
  tools_.ops->Embed(lane, batch, *table_, first_row_, hidden);
  tools_.tensor_group->AllReduceSum(lane, hidden);
}

void VocabHead::Apply(Lane& lane, const ops::StepBatch& batch, ConstTensorView hidden,
                      Sink sink) const {
  const int64_t shards = tools_.tensor_group->size();
  const int64_t width = hidden.shape[1];
  for (int64_t begin = 0; begin < batch.num_samples; begin += chunk_samples_) {
    const ScratchScope scope(lane);
    const int64_t end = std::min<int64_t>(begin + chunk_samples_, batch.num_samples);
    const TensorView picked = lane.Scratch(hidden.dtype, Shape{end - begin, width});
    const TensorView normed = lane.Scratch(hidden.dtype, Shape{end - begin, width});
    tools_.ops->GatherRows(lane, hidden, batch.sample_tokens + begin, picked);
    tools_.ops->RmsNorm(lane, picked, norm_.gain, norm_.epsilon, normed);
    const TensorView all = lane.Scratch(DType::kF32, Shape{shards, end - begin, table_->rows});
    TensorView part = {all.data, DType::kF32, Shape{end - begin, table_->rows}};
    if (shards > 1) part = lane.Scratch(DType::kF32, part.shape);
    tools_.ops->MatMul(lane, normed, *table_, part);
    if (shards > 1) tools_.tensor_group->AllGather(lane, part, all);
    sink(Range{begin, end}, all);
  }
}

int64_t HeadScratchBytes(const plan::ModelSpec& spec, const plan::Shard& shard, int32_t shards,
                         DType activations, int64_t chunk_samples) {
  constexpr int64_t kAlignment = 64;
  constexpr int64_t kTemporaries = 4;  // rows picked and normed, logits of one shard and of all
  const int64_t logits = chunk_samples * shard.vocab_rows.size() * SizeOf(DType::kF32);
  const int64_t hidden = chunk_samples * spec.width * SizeOf(activations);
  return (shards > 1 ? shards + 1 : 1) * logits + 2 * hidden + kTemporaries * kAlignment;
}

}  // namespace polyreme::model
