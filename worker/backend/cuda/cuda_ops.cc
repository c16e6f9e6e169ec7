#include "worker/backend/cuda/cuda_ops.h"

#include <utility>
#include <vector>

#include "worker/backend/cuda/cuda_lane.h"
#include "worker/backend/cuda/elementwise.h"
#include "worker/backend/cuda/sample_kernels.h"

namespace polyreme::cuda {
namespace {

// Of the floats; anything else is our bug.
Element ElementOf(DType dtype) {
  CHECK(IsFloat(dtype), "a kernel is given {}", NameOf(dtype));
  if (dtype == DType::kF16) return Element::kF16;
  return dtype == DType::kBF16 ? Element::kBF16 : Element::kF32;
}

const CudaLane& LaneOf(const Lane& lane) {
  return static_cast<const CudaLane&>(lane);
}

cudaStream_t StreamOf(const Lane& lane) {
  return LaneOf(lane).stream();
}

void Check(const Lane& lane, cudaError_t error, std::string_view op) {
  (void)LaneOf(lane).Check(error, op);
}

void Check(Lane& lane, const absl::Status& status, std::string_view op) {
  if (!status.ok()) lane.Fail(Annotate(status, op));
}

Step StepOf(const ops::StepBatch& batch) {
  return {batch.num_tokens,   batch.num_rows,        batch.tokens,    batch.positions,
          batch.token_rows,   batch.row_begins,      batch.row_slots, batch.block_table,
          batch.table_stride, batch.tokens_per_block};
}

Pool PoolOf(const ops::LayerKv& kv) {
  return {kv.keys.data, kv.values.data, ElementOf(kv.keys.dtype)};
}

const float* Floats(ConstTensorView view) {
  return static_cast<const float*>(view.data);
}

}  // namespace

CudaOps::CudaOps(CudaDevice& device, DType dtype, std::unique_ptr<Products> products,
                 std::unique_ptr<Attention> attention)
    : device_(device),
      dtype_(dtype),
      type_(ElementOf(dtype)),
      products_(std::move(products)),
      attention_(std::move(attention)) {}

int64_t CudaOps::WorkspaceBytes(const ops::Workload& workload) const {
  return OpsWorkspaceBytes(attention_->setup(), workload);
}

absl::Status CudaOps::Prepare(Lane& lane, const ops::Workload& workload) {
  RETURN_IF_ERROR(lane.status());
  const cudaStream_t stream = StreamOf(lane);
  RETURN_IF_ERROR(Annotate(attention_->Reserve(workload), "memory for attention"));
  RETURN_IF_ERROR(
      ReserveSampleScratch(SampleScratchBytes(workload.max_samples, workload.vocabulary)));
  std::vector<Products::Shape> shapes;
  for (const ops::Workload::Product& product : workload.products) {
    CHECK(product.weight != nullptr && product.weight->dtype == dtype_);
    shapes.push_back({product.weight->bytes.data(), product.weight->rows, product.weight->cols,
                      product.rows, ElementOf(product.out)});
  }
  return Annotate(products_->Tune(stream, shapes), "choosing algorithms of products");
}

absl::Status CudaOps::ReserveSampleScratch(int64_t bytes) {
  if (sample_scratch_.bytes() >= bytes) return absl::OkStatus();
  sample_scratch_ = Buffer();
  ASSIGN_OR_RETURN(sample_scratch_, device_.Allocate(bytes));
  return absl::OkStatus();
}

void CudaOps::DoEmbed(Lane& lane, const ops::StepBatch& batch, const weights::Weight& table,
                      int64_t first_row, TensorView y) {
  Check(lane,
        cuda::Embed(StreamOf(lane), type_, batch.tokens, table.bytes.data(), ElementOf(table.dtype),
                    first_row, table.rows, batch.num_tokens, table.cols, y.data),
        "Embed");
}

void CudaOps::DoRmsNorm(Lane& lane, ConstTensorView x, ConstTensorView gain, float epsilon,
                        TensorView y) {
  Check(lane,
        cuda::RmsNorm(StreamOf(lane), type_, x.data, Floats(gain), epsilon, x.rows(), x.shape[1],
                      y.data),
        "RmsNorm");
}

void CudaOps::DoAddRmsNorm(Lane& lane, ConstTensorView delta, TensorView x, ConstTensorView gain,
                           float epsilon, TensorView y) {
  Check(lane,
        cuda::AddRmsNorm(StreamOf(lane), type_, delta.data, x.data, Floats(gain), epsilon, x.rows(),
                         x.shape[1], y.data),
        "AddRmsNorm");
}

void CudaOps::DoAdd(Lane& lane, ConstTensorView delta, TensorView x) {
  Check(lane, cuda::Add(StreamOf(lane), type_, delta.data, x.data, x.num_elements()), "Add");
}

void CudaOps::DoAddBias(Lane& lane, ConstTensorView bias, TensorView x) {
  Check(lane, cuda::AddBias(StreamOf(lane), type_, Floats(bias), x.rows(), x.shape[1], x.data),
        "AddBias");
}

void CudaOps::DoMatMul(Lane& lane, ConstTensorView x, const weights::Weight& w, TensorView y) {
  CHECK(w.dtype == dtype_, "a weight of {} for activations of {}", NameOf(w.dtype), NameOf(dtype_));
  Check(lane,
        products_->Run(StreamOf(lane), x.data, x.rows(), w.bytes.data(), w.rows, w.cols, y.data,
                       ElementOf(y.dtype)),
        "MatMul");
}

void CudaOps::DoNormHeads(Lane& lane, const ops::HeadLayout& heads, ConstTensorView q_gain,
                          ConstTensorView k_gain, float epsilon, TensorView qkv) {
  Check(lane,
        cuda::NormHeads(StreamOf(lane), type_, HeadsOf(heads), Floats(q_gain), Floats(k_gain),
                        epsilon, qkv.rows(), qkv.data),
        "NormHeads");
}

void CudaOps::DoRotateAndStore(Lane& lane, const ops::StepBatch& batch,
                               const ops::HeadLayout& heads, const ops::RopeTable& rope,
                               TensorView qkv, const ops::LayerKv& kv) {
  Check(lane,
        cuda::RotateAndStore(StreamOf(lane), type_, StepOf(batch), HeadsOf(heads),
                             Floats(rope.cos_sin), qkv.data, PoolOf(kv)),
        "RotateAndStore");
}

void CudaOps::DoPrepareAttention(Lane& lane, const ops::StepBatch& batch,
                                 const ops::HeadLayout& heads) {
  CHECK(!LaneOf(lane).recording(), "a plan of attention cannot be recorded");
  Check(lane, attention_->Plan(StreamOf(lane), batch, HeadsOf(heads)), "PrepareAttention");
}

void CudaOps::DoAttend(Lane& lane, const ops::StepBatch& batch, const ops::HeadLayout& heads,
                       ConstTensorView qkv, const ops::LayerKv& kv, float scale, TensorView y) {
  Check(lane,
        attention_->Run(StreamOf(lane), batch, HeadsOf(heads), qkv.data, PoolOf(kv), scale, y.data),
        "Attend");
}

void CudaOps::DoSiluGate(Lane& lane, ConstTensorView x, TensorView y) {
  Check(lane, cuda::SiluGate(StreamOf(lane), type_, x.data, y.rows(), y.shape[1], y.data),
        "SiluGate");
}

void CudaOps::DoGatherRows(Lane& lane, ConstTensorView x, const int32_t* rows, TensorView y) {
  const int64_t row_bytes = x.shape[1] * SizeOf(x.dtype);
  if (row_bytes % 4 == 0) {
    Check(lane, cuda::GatherRows(StreamOf(lane), x.data, rows, y.rows(), row_bytes, y.data),
          "GatherRows");
    return;
  }
  // Rows of 16-bit floats whose number is odd: a look-up in a table.
  const Element type = ElementOf(x.dtype);
  Check(lane,
        cuda::Embed(StreamOf(lane), type, rows, x.data, type, 0, x.rows(), y.rows(), x.shape[1],
                    y.data),
        "GatherRows");
}

void CudaOps::DoCopyBlocks(Lane& lane, const ops::LayerKv& kv, const ops::BlockMove* moves,
                           int32_t num_moves) {
  static_assert(sizeof(ops::BlockMove) == 2 * sizeof(int32_t));
  const int64_t block_bytes = kv.keys.row_elements() * SizeOf(kv.keys.dtype);
  if (block_bytes % 16 != 0) {
    lane.Fail(Unimplemented("CopyBlocks: expected cache blocks of a multiple of 16 bytes, got {}",
                            block_bytes));
    return;
  }
  Check(lane,
        cuda::CopyBlocks(StreamOf(lane), kv.keys.data, kv.values.data, block_bytes,
                         reinterpret_cast<const int32_t*>(moves), num_moves),
        "CopyBlocks");
}

void CudaOps::DoSample(Lane& lane, const ops::SampleBatch& batch) {
  const int64_t scratch = SampleScratchBytes(batch.num_samples, batch.vocabulary);
  if (sample_scratch_.bytes() < scratch) {
    // Only without Prepare: in the step path nothing allocates.
    CHECK(!LaneOf(lane).recording(), "Prepare did not reckon with {} samples", batch.num_samples);
    Check(lane, ReserveSampleScratch(scratch), "Sample");
    if (!lane.ok()) return;
  }
  SampleArguments arguments;
  arguments.num_samples = batch.num_samples;
  arguments.vocabulary = batch.vocabulary;
  arguments.shards = static_cast<int>(batch.logits.shape[0]);
  arguments.columns = batch.logits.shape[2];
  arguments.logits = Floats(batch.logits);
  arguments.specs = batch.specs;
  arguments.bias_tokens = batch.bias_tokens;
  arguments.bias_values = batch.bias_values;
  arguments.allowed_tokens = batch.allowed_tokens;
  arguments.token_counts = batch.token_counts;
  arguments.outputs = batch.outputs;
  arguments.top_tokens = batch.top_tokens;
  arguments.top_logprobs = batch.top_logprobs;
  arguments.workspace = static_cast<float*>(batch.workspace.data);
  arguments.scratch = sample_scratch_.data();
  Check(lane, cuda::Sample(StreamOf(lane), arguments), "Sample");
}

}  // namespace polyreme::cuda
