#include "worker/backend/cpu/cpu_ops.h"

#include <algorithm>
#include <cstring>

#include "parallel/base/limits.h"
#include "worker/backend/cpu/cpu_sampler.h"
#include "worker/backend/cpu/float_formats.h"

namespace polyreme::backend {
namespace {

using cpu::kLanes;
using cpu::Storage;

// Waking a thread costs some microseconds; smaller row-wise work than this stays on the caller.
constexpr int64_t kFloatsPerTask = 16384;

Storage StorageOf(DType dtype) {
  if (dtype == DType::kF16) return Storage::kF16;
  return dtype == DType::kBF16 ? Storage::kBF16 : Storage::kF32;
}

int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

const std::byte* At(const void* data, DType dtype, int64_t element) {
  return static_cast<const std::byte*>(data) + element * SizeOf(dtype);
}
std::byte* At(void* data, DType dtype, int64_t element) {
  return static_cast<std::byte*>(data) + element * SizeOf(dtype);
}

float ReadElement(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[index];
  const uint16_t half = static_cast<const uint16_t*>(data)[index];
  return dtype == DType::kBF16 ? cpu::FromBf16<void>(half) : cpu::FromF16<void>(half);
}

void StoreElements(const float* from, int64_t n, DType dtype, void* to) {
  if (dtype == DType::kF32) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  auto* half = static_cast<uint16_t*>(to);
  for (int64_t i = 0; i < n; ++i) {
    half[i] = dtype == DType::kBF16 ? cpu::ToBf16<void>(from[i]) : cpu::ToF16<void>(from[i]);
  }
}

// Elements from the pool's start to the cache place of one token.
int64_t PlaceOf(const ops::StepBatch& batch, const ops::HeadLayout& heads, int64_t token) {
  const int64_t slot = batch.row_slots[batch.token_rows[token]];
  const int64_t position = batch.positions[token];
  const int64_t block =
      batch.block_table[slot * batch.table_stride + position / batch.tokens_per_block];
  return (block * batch.tokens_per_block + position % batch.tokens_per_block) * heads.kv_heads *
         heads.head_dim;
}

// Panels of one task: whole register tiles of them, unless some threads would then have nothing to
// do.
int64_t PanelsPerTask(int64_t num_panels, int64_t num_threads) {
  int64_t panels = cpu::kTaskPanels;
  if (num_threads == 1) return panels;
  while (panels > 2 && CeilDiv(num_panels, panels) < 4 * num_threads) panels /= 2;
  return panels;
}

}  // namespace

CpuOps::CpuOps(ThreadPool& pool, const cpu::Kernels& kernels) : pool_(pool), kernels_(kernels) {
  tile_begins_.reserve(limits::kMaxSequences + 1);
}

void CpuOps::ForRows(int64_t num_rows, int64_t floats, absl::FunctionRef<void(int64_t)> body) {
  const int64_t rows_per_task = std::max<int64_t>(1, kFloatsPerTask / std::max<int64_t>(1, floats));
  pool_.ParallelFor(CeilDiv(num_rows, rows_per_task), [&](int64_t task) {
    const int64_t end = std::min(num_rows, (task + 1) * rows_per_task);
    for (int64_t t = task * rows_per_task; t < end; ++t) body(t);
  });
}

void CpuOps::DoEmbed(Lane&, const ops::StepBatch& batch, const weights::Weight& table,
                     int64_t first_row, TensorView y) {
  const int64_t cols = table.cols;
  ForRows(batch.num_tokens, cols, [&](int64_t t) {
    float* to = y.As<float>() + t * cols;
    const int64_t row = batch.tokens[t] - first_row;
    if (row < 0 || row >= table.rows) {
      std::fill_n(to, cols, 0.0f);
      return;
    }
    const void* panel = At(table.bytes.data(), table.dtype, row / kLanes * cols * kLanes);
    for (int64_t k = 0; k < cols; ++k) {
      to[k] = ReadElement(panel, table.dtype, k * kLanes + row % kLanes);
    }
  });
}

void CpuOps::DoRmsNorm(Lane&, ConstTensorView x, ConstTensorView gain, float epsilon,
                       TensorView y) {
  const int64_t cols = x.shape[1];
  ForRows(x.rows(), cols, [&](int64_t t) {
    kernels_.rms_norm(x.As<float>() + t * cols, gain.As<float>(), cols, epsilon,
                      y.As<float>() + t * cols);
  });
}

void CpuOps::DoAddRmsNorm(Lane&, ConstTensorView delta, TensorView x, ConstTensorView gain,
                          float epsilon, TensorView y) {
  const int64_t cols = x.shape[1];
  ForRows(x.rows(), 2 * cols, [&](int64_t t) {
    float* row = x.As<float>() + t * cols;
    kernels_.add(delta.As<float>() + t * cols, cols, row);
    kernels_.rms_norm(row, gain.As<float>(), cols, epsilon, y.As<float>() + t * cols);
  });
}

void CpuOps::DoAdd(Lane&, ConstTensorView delta, TensorView x) {
  const int64_t cols = x.shape[1];
  ForRows(x.rows(), cols, [&](int64_t t) {
    kernels_.add(delta.As<float>() + t * cols, cols, x.As<float>() + t * cols);
  });
}

void CpuOps::DoAddBias(Lane&, ConstTensorView bias, TensorView x) {
  const int64_t cols = x.shape[1];
  ForRows(x.rows(), cols,
          [&](int64_t t) { kernels_.add(bias.As<float>(), cols, x.As<float>() + t * cols); });
}

void CpuOps::DoMatMul(Lane&, ConstTensorView x, const weights::Weight& w, TensorView y) {
  const int64_t num_rows = x.rows();
  const int64_t row_tasks = CeilDiv(num_rows, cpu::kTaskRows);
  const int64_t num_panels = CeilDiv(w.rows, kLanes);
  const int64_t panels_per_task = PanelsPerTask(num_panels, pool_.num_threads());
  const auto product = kernels_.product[static_cast<size_t>(StorageOf(w.dtype))];
  pool_.ParallelFor(CeilDiv(num_panels, panels_per_task) * row_tasks, [&](int64_t task) {
    const int64_t first_panel = task / row_tasks * panels_per_task;
    const int64_t row_task = task % row_tasks;
    const int64_t row = num_rows * row_task / row_tasks;
    const int64_t output = first_panel * kLanes;
    product({.x = x.As<float>() + row * w.cols,
             .x_stride = w.cols,
             .num_rows = num_rows * (row_task + 1) / row_tasks - row,
             .panels = At(w.bytes.data(), w.dtype, output * w.cols),
             .num_panels = std::min(panels_per_task, num_panels - first_panel),
             .cols = w.cols,
             .segment_ends = w.segment_ends.data(),
             .num_segments = w.num_segments(),
             .y = y.As<float>() + row * w.rows + output,
             .y_stride = w.rows,
             .num_outputs = std::min(panels_per_task * kLanes, w.rows - output)});
  });
}

void CpuOps::DoNormHeads(Lane&, const ops::HeadLayout& heads, ConstTensorView q_gain,
                         ConstTensorView k_gain, float epsilon, TensorView qkv) {
  const int64_t columns = heads.columns();
  ForRows(qkv.rows(), columns, [&](int64_t t) {
    float* row = qkv.As<float>() + t * columns;
    for (int64_t h = 0; h < heads.query_heads + heads.kv_heads; ++h) {
      float* head = row + h * heads.head_dim;
      const ConstTensorView& gain = h < heads.query_heads ? q_gain : k_gain;
      kernels_.rms_norm(head, gain.As<float>(), heads.head_dim, epsilon, head);
    }
  });
}

void CpuOps::DoRotateAndStore(Lane&, const ops::StepBatch& batch, const ops::HeadLayout& heads,
                              const ops::RopeTable& rope, TensorView qkv, const ops::LayerKv& kv) {
  const int64_t columns = heads.columns();
  const int64_t width = heads.kv_heads * heads.head_dim;
  ForRows(batch.num_tokens, columns, [&](int64_t t) {
    if (batch.positions[t] < 0) return;  // padding
    float* row = qkv.As<float>() + t * columns;
    CHECK(batch.positions[t] < rope.cos_sin.shape[0], "position {} is beyond the rope table's {}",
          batch.positions[t], rope.cos_sin.shape[0]);
    const float* cos_sin = rope.cos_sin.As<float>() + batch.positions[t] * heads.head_dim;
    for (int64_t h = 0; h < heads.query_heads + heads.kv_heads; ++h) {
      kernels_.rotate(cos_sin, heads.head_dim, row + h * heads.head_dim);
    }
    const int64_t place = PlaceOf(batch, heads, t);
    const float* keys = row + heads.query_heads * heads.head_dim;
    StoreElements(keys, width, kv.keys.dtype, At(kv.keys.data, kv.keys.dtype, place));
    StoreElements(keys + width, width, kv.values.dtype, At(kv.values.data, kv.values.dtype, place));
  });
}

void CpuOps::DoPrepareAttention(Lane&, const ops::StepBatch& batch, const ops::HeadLayout& heads) {
  CHECK(batch.num_rows <= limits::kMaxSequences, "{} rows in a step", batch.num_rows);
  const int64_t group = heads.query_heads / heads.kv_heads;
  tokens_per_tile_ = std::max<int64_t>(1, cpu::kAttendRows / group);
  tile_begins_.assign(1, 0);
  int64_t longest = 1;
  for (int32_t r = 0; r < batch.num_rows; ++r) {
    const auto row = static_cast<size_t>(r);
    const int64_t tokens = batch.host_row_begins[row + 1] - batch.host_row_begins[row];
    longest = std::max(longest, std::min(tokens, tokens_per_tile_));
    tile_begins_.push_back(tile_begins_.back() + CeilDiv(tokens, tokens_per_tile_));
  }
  // As many heads together as there is room for, unless some threads would then have nothing to do.
  const int64_t fair = heads.kv_heads * tile_begins_.back() / pool_.num_threads();
  const int64_t room = cpu::kAttendTaskRows / (longest * std::min(group, cpu::kAttendRows));
  kv_heads_per_task_ =
      group > cpu::kAttendRows ? 1 : std::clamp<int64_t>(std::min(fair, room), 1, heads.kv_heads);
}

void CpuOps::DoAttend(Lane&, const ops::StepBatch& batch, const ops::HeadLayout& heads,
                      ConstTensorView qkv, const ops::LayerKv& kv, float scale, TensorView y) {
  CHECK(heads.head_dim <= cpu::kMaxHeadDim, "head width {} is beyond {}", heads.head_dim,
        cpu::kMaxHeadDim);
  CHECK(static_cast<int32_t>(tile_begins_.size()) == batch.num_rows + 1,
        "PrepareAttention saw another step");
  const int64_t group = heads.query_heads / heads.kv_heads;
  const int64_t slices = CeilDiv(group, cpu::kAttendRows);
  const int64_t head_tasks = CeilDiv(heads.kv_heads, kv_heads_per_task_) * slices;
  const auto attend = kernels_.attend[static_cast<size_t>(StorageOf(kv.keys.dtype))];
  pool_.ParallelFor(tile_begins_.back() * head_tasks, [&](int64_t task) {
    const int64_t tile = task / head_tasks;
    const auto row =
        static_cast<size_t>(std::upper_bound(tile_begins_.begin(), tile_begins_.end(), tile) -
                            tile_begins_.begin() - 1);
    const int64_t skipped = (tile - tile_begins_[row]) * tokens_per_tile_;
    const int64_t token = batch.host_row_begins[row] + skipped;
    const int64_t slice = task % slices;
    const int64_t kv_head = task % head_tasks / slices * kv_heads_per_task_;
    const int64_t head = kv_head * group + slice * cpu::kAttendRows;
    const int64_t element = kv_head * heads.head_dim;
    const int64_t num_heads = std::min(cpu::kAttendRows, group - slice * cpu::kAttendRows);
    const int64_t num_kv_heads = std::min(kv_heads_per_task_, heads.kv_heads - kv_head);
    float* const attended = y.As<float>() + (token * heads.query_heads + head) * heads.head_dim;
    if (batch.host_row_first_positions[row] < 0) {  // padding: one token
      std::fill_n(attended, num_kv_heads * num_heads * heads.head_dim, 0.0f);
      return;
    }
    attend({.queries = qkv.As<float>() + token * heads.columns() + head * heads.head_dim,
            .query_stride = heads.columns(),
            .num_tokens = std::min(tokens_per_tile_, batch.host_row_begins[row + 1] - token),
            .num_heads = num_heads,
            .num_kv_heads = num_kv_heads,
            .first_position = batch.host_row_first_positions[row] + skipped,
            .head_dim = heads.head_dim,
            .keys = At(kv.keys.data, kv.keys.dtype, element),
            .values = At(kv.values.data, kv.values.dtype, element),
            .place_stride = heads.kv_heads * heads.head_dim,
            .blocks = batch.block_table + int64_t{batch.row_slots[row]} * batch.table_stride,
            .tokens_per_block = batch.tokens_per_block,
            .scale = scale,
            .y = attended,
            .y_stride = heads.query_heads * heads.head_dim});
  });
}

void CpuOps::DoSiluGate(Lane&, ConstTensorView x, TensorView y) {
  const int64_t cols = y.shape[1];
  ForRows(y.rows(), 4 * cols, [&](int64_t t) {
    const float* gate = x.As<float>() + t * 2 * cols;
    kernels_.silu_gate(gate, gate + cols, cols, y.As<float>() + t * cols);
  });
}

void CpuOps::DoGatherRows(Lane&, ConstTensorView x, const int32_t* rows, TensorView y) {
  const int64_t cols = x.shape[1];
  ForRows(y.rows(), cols, [&](int64_t i) {
    CHECK(rows[i] >= 0 && rows[i] < x.rows(), "row {} of {}", rows[i], x.rows());
    std::memcpy(At(y.data, y.dtype, i * cols), At(x.data, x.dtype, rows[i] * cols),
                static_cast<size_t>(cols * SizeOf(x.dtype)));
  });
}

void CpuOps::DoCopyBlocks(Lane&, const ops::LayerKv& kv, const ops::BlockMove* moves,
                          int32_t num_moves) {
  const int64_t bytes = kv.keys.row_elements() * SizeOf(kv.keys.dtype);
  for (int32_t i = 0; i < num_moves; ++i) {
    for (const TensorView& pool : {kv.keys, kv.values}) {
      auto* blocks = static_cast<std::byte*>(pool.data);
      std::memcpy(blocks + moves[i].to * bytes, blocks + moves[i].from * bytes,
                  static_cast<size_t>(bytes));
    }
  }
}

void CpuOps::DoSample(Lane&, const ops::SampleBatch& batch) {
  SampleOnCpu(pool_, batch);
}

}  // namespace polyreme::backend
