#include "worker/ops/ops.h"

namespace polyreme::ops {
namespace {

template <class View>
void CheckMatrix(const View& view, int64_t rows, int64_t cols, DType dtype) {
  CHECK(view.shape == Shape({rows, cols}), "expected [{}, {}], got {}", rows, cols,
        view.shape.ToString());
  CHECK(view.dtype == dtype, "expected {}, got {}", NameOf(dtype), NameOf(view.dtype));
}

void CheckVector(const ConstTensorView& view, int64_t elements) {
  CHECK(view.shape == Shape({elements}), "expected [{}], got {}", elements, view.shape.ToString());
  CHECK(view.dtype == DType::kF32, "expected float32, got {}", NameOf(view.dtype));
}

template <class View>
void CheckRank2(const View& view) {
  CHECK(view.shape.rank() == 2, "expected two axes, got {}", view.shape.ToString());
}

void CheckWeight(const weights::Weight& w) {
  CHECK(IsFloat(w.dtype), "expected a float weight, got {}", NameOf(w.dtype));
  CHECK(w.num_segments() >= 1 && w.num_segments() <= limits::kSumSegments &&
            w.segment_ends.back() == w.cols,
        "a weight of {} columns has a bad list of {} segments", w.cols, w.num_segments());
}

void CheckHeads(const HeadLayout& heads) {
  CHECK(heads.kv_heads > 0 && heads.query_heads > 0 && heads.query_heads % heads.kv_heads == 0,
        "{} query heads do not share {} key-value heads", heads.query_heads, heads.kv_heads);
  CHECK(heads.head_dim > 0 && heads.head_dim % 2 == 0, "head width {} cannot be rotated",
        heads.head_dim);
}

void CheckBatch(const StepBatch& batch) {
  CHECK(batch.num_tokens >= 0 && batch.num_rows >= 0 && batch.tokens_per_block > 0);
  CHECK(static_cast<int32_t>(batch.host_row_begins.size()) == batch.num_rows + 1 &&
            static_cast<int32_t>(batch.host_row_first_positions.size()) == batch.num_rows,
        "the host's view of {} rows has {} begins and {} positions", batch.num_rows,
        batch.host_row_begins.size(), batch.host_row_first_positions.size());
  CHECK(batch.host_row_begins.back() == batch.num_tokens, "rows end at {} of {} tokens",
        batch.host_row_begins.back(), batch.num_tokens);
}

void CheckCache(const StepBatch& batch, const HeadLayout& heads, const LayerKv& kv) {
  CHECK(kv.keys.shape.rank() == 4 && kv.keys.shape == kv.values.shape &&
            kv.keys.dtype == kv.values.dtype && IsFloat(kv.keys.dtype),
        "keys {} and values {} differ", kv.keys.shape.ToString(), kv.values.shape.ToString());
  CHECK(kv.keys.shape[1] == batch.tokens_per_block && kv.keys.shape[2] == heads.kv_heads &&
            kv.keys.shape[3] == heads.head_dim,
        "expected [blocks, {}, {}, {}], got {}", batch.tokens_per_block, heads.kv_heads,
        heads.head_dim, kv.keys.shape.ToString());
}

}  // namespace

void Ops::Embed(Lane& lane, const StepBatch& batch, const weights::Weight& table, int64_t first_row,
                TensorView y) {
  CheckWeight(table);
  CheckMatrix(y, batch.num_tokens, table.cols, activation_dtype());
  CHECK(first_row >= 0);
  if (lane.ok() && batch.num_tokens > 0) DoEmbed(lane, batch, table, first_row, y);
}

void Ops::RmsNorm(Lane& lane, ConstTensorView x, ConstTensorView gain, float epsilon,
                  TensorView y) {
  CheckRank2(x);
  CheckMatrix(x, x.shape[0], x.shape[1], activation_dtype());
  CheckMatrix(y, x.shape[0], x.shape[1], activation_dtype());
  CheckVector(gain, x.shape[1]);
  if (lane.ok() && x.rows() > 0) DoRmsNorm(lane, x, gain, epsilon, y);
}

void Ops::AddRmsNorm(Lane& lane, ConstTensorView delta, TensorView x, ConstTensorView gain,
                     float epsilon, TensorView y) {
  CheckRank2(x);
  CheckMatrix(delta, x.shape[0], x.shape[1], activation_dtype());
  CheckMatrix(x, x.shape[0], x.shape[1], activation_dtype());
  CheckMatrix(y, x.shape[0], x.shape[1], activation_dtype());
  CheckVector(gain, x.shape[1]);
  if (lane.ok() && x.rows() > 0) DoAddRmsNorm(lane, delta, x, gain, epsilon, y);
}

void Ops::DoAddRmsNorm(Lane& lane, ConstTensorView delta, TensorView x, ConstTensorView gain,
                       float epsilon, TensorView y) {
  DoAdd(lane, delta, x);
  DoRmsNorm(lane, x, gain, epsilon, y);
}

void Ops::Add(Lane& lane, ConstTensorView delta, TensorView x) {
  CheckRank2(x);
  CheckMatrix(delta, x.shape[0], x.shape[1], activation_dtype());
  CheckMatrix(x, x.shape[0], x.shape[1], activation_dtype());
  if (lane.ok() && x.rows() > 0) DoAdd(lane, delta, x);
}

void Ops::AddBias(Lane& lane, ConstTensorView bias, TensorView x) {
  CheckRank2(x);
  CheckMatrix(x, x.shape[0], x.shape[1], activation_dtype());
  CheckVector(bias, x.shape[1]);
  if (lane.ok() && x.rows() > 0) DoAddBias(lane, bias, x);
}

void Ops::MatMul(Lane& lane, ConstTensorView x, const weights::Weight& w, TensorView y) {
  CheckWeight(w);
  CheckRank2(x);
  CheckMatrix(x, x.shape[0], w.cols, activation_dtype());
  CHECK(y.dtype == DType::kF32 || y.dtype == activation_dtype());
  CheckMatrix(y, x.shape[0], w.rows, y.dtype);
  if (lane.ok() && x.rows() > 0 && w.rows > 0) DoMatMul(lane, x, w, y);
}

void Ops::NormHeads(Lane& lane, const HeadLayout& heads, ConstTensorView q_gain,
                    ConstTensorView k_gain, float epsilon, TensorView qkv) {
  CheckHeads(heads);
  CheckRank2(qkv);
  CheckMatrix(qkv, qkv.shape[0], heads.columns(), activation_dtype());
  CheckVector(q_gain, heads.head_dim);
  CheckVector(k_gain, heads.head_dim);
  if (lane.ok() && qkv.rows() > 0) DoNormHeads(lane, heads, q_gain, k_gain, epsilon, qkv);
}

void Ops::RotateAndStore(Lane& lane, const StepBatch& batch, const HeadLayout& heads,
                         const RopeTable& rope, TensorView qkv, const LayerKv& kv) {
  CheckHeads(heads);
  CheckBatch(batch);
  CheckCache(batch, heads, kv);
  CheckMatrix(qkv, batch.num_tokens, heads.columns(), activation_dtype());
  CheckRank2(rope.cos_sin);
  CheckMatrix(rope.cos_sin, rope.cos_sin.shape[0], heads.head_dim, DType::kF32);
  if (lane.ok() && batch.num_tokens > 0) DoRotateAndStore(lane, batch, heads, rope, qkv, kv);
}

void Ops::PrepareAttention(Lane& lane, const StepBatch& batch, const HeadLayout& heads) {
  CheckHeads(heads);
  CheckBatch(batch);
  if (lane.ok()) DoPrepareAttention(lane, batch, heads);
}

void Ops::Attend(Lane& lane, const StepBatch& batch, const HeadLayout& heads, ConstTensorView qkv,
                 const LayerKv& kv, float scale, TensorView y) {
  CheckHeads(heads);
  CheckBatch(batch);
  CheckCache(batch, heads, kv);
  CheckMatrix(qkv, batch.num_tokens, heads.columns(), activation_dtype());
  CheckMatrix(y, batch.num_tokens, heads.query_heads * heads.head_dim, activation_dtype());
  if (lane.ok() && batch.num_tokens > 0) DoAttend(lane, batch, heads, qkv, kv, scale, y);
}

void Ops::SiluGate(Lane& lane, ConstTensorView x, TensorView y) {
  CheckRank2(y);
  CheckMatrix(x, y.shape[0], 2 * y.shape[1], activation_dtype());
  CheckMatrix(y, y.shape[0], y.shape[1], activation_dtype());
  if (lane.ok() && y.rows() > 0) DoSiluGate(lane, x, y);
}

void Ops::GatherRows(Lane& lane, ConstTensorView x, const int32_t* rows, TensorView y) {
  CheckRank2(x);
  CheckRank2(y);
  CheckMatrix(y, y.shape[0], x.shape[1], x.dtype);
  if (lane.ok() && y.rows() > 0) DoGatherRows(lane, x, rows, y);
}

void Ops::CopyBlocks(Lane& lane, const LayerKv& kv, const BlockMove* moves, int32_t num_moves) {
  CHECK(kv.keys.shape.rank() == 4 && kv.keys.shape == kv.values.shape &&
            kv.keys.dtype == kv.values.dtype,
        "keys {} and values {} differ", kv.keys.shape.ToString(), kv.values.shape.ToString());
  if (lane.ok() && num_moves > 0) DoCopyBlocks(lane, kv, moves, num_moves);
}

void Ops::Sample(Lane& lane, const SampleBatch& batch) {
  const Shape& logits = batch.logits.shape;
  CHECK(logits.rank() == 3 && logits[1] == batch.num_samples &&
            logits[0] * logits[2] >= batch.vocabulary && batch.logits.dtype == DType::kF32,
        "expected float32 [shards, {}, V] over {} tokens, got {} {}", batch.num_samples,
        batch.vocabulary, NameOf(batch.logits.dtype), logits.ToString());
  CheckMatrix(batch.workspace, batch.num_samples, batch.vocabulary, DType::kF32);
  if (lane.ok() && batch.num_samples > 0) DoSample(lane, batch);
}

}  // namespace polyreme::ops
