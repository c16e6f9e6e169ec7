#include "worker/backend/cpu/cpu_packer.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "worker/backend/cpu/kernels.h"
#include "worker/backend/device_kind.h"
#include "worker/weights/dummy.h"

namespace polyreme::backend {
namespace {

using weights::WeightSource;
// One row of a panel: bytes, or the index of its first element in a dummy tensor, or zeros.
struct PanelRow {
  const std::byte* data = nullptr;
  const weights::DummyValues* values = nullptr;
  uint64_t first = 0;
};
using PanelRows = std::array<PanelRow, cpu::kLanes>;

PanelRow RowOf(const WeightSource::RowBlock& block, int64_t row) {
  if (block.data != nullptr) return {.data = block.data + row * block.row_stride_bytes};
  if (!block.generated.has_value()) return {};
  const WeightSource::Generated& from = *block.generated;
  const int64_t first = (from.first_row + row) * from.full_cols + from.first_col;
  return {.values = &from.values, .first = static_cast<uint64_t>(first)};
}

PanelRows RowsOfPanel(const WeightSource& source, int64_t panel) {
  PanelRows rows{};
  int64_t block_begin = 0;
  for (const WeightSource::RowBlock& block : source.blocks) {
    const int64_t block_end = block_begin + block.rows;
    const int64_t begin = std::max(block_begin, panel * cpu::kLanes);
    const int64_t end = std::min(block_end, (panel + 1) * cpu::kLanes);
    for (int64_t n = begin; n < end; ++n) {
      rows[static_cast<size_t>(n % cpu::kLanes)] = RowOf(block, n - block_begin);
    }
    block_begin = block_end;
  }
  return rows;
}

// memcpy, because a mapped file promises no alignment. The panel is already zero where there is no
// row. Columns are taken some at a time, so that the 16 rows meet in the first-level cache.
template <class Element>
void PackPanel(const PanelRows& rows, DType dtype, int64_t cols, std::byte* panel) {
  constexpr int64_t kBlockCols = 256;
  constexpr auto kBytes = static_cast<int64_t>(sizeof(Element));
  std::array<std::byte, kBlockCols * sizeof(Element)> made;
  for (int64_t begin = 0; begin < cols; begin += kBlockCols) {
    const int64_t count = std::min(cols - begin, kBlockCols);
    for (int64_t n = 0; n < cpu::kLanes; ++n) {
      const PanelRow& row = rows[static_cast<size_t>(n)];
      const std::byte* from = made.data();
      if (row.data != nullptr) {
        from = row.data + begin * kBytes;
      } else if (row.values != nullptr) {
        weights::FillDummy(*row.values, dtype, row.first + static_cast<uint64_t>(begin), count,
                           made.data());
      } else {
        continue;
      }
      for (int64_t k = 0; k < count; ++k) {
        std::memcpy(panel + ((begin + k) * cpu::kLanes + n) * kBytes, from + k * kBytes,
                    sizeof(Element));
      }
    }
  }
}

void CheckSource(const WeightSource& source) {
  CHECK(source.cols > 0, "a weight of {} columns", source.cols);
  CHECK(static_cast<int32_t>(source.segment_ends.size()) <= limits::kSumSegments);
  CHECK(std::is_sorted(source.segment_ends.begin(), source.segment_ends.end()));
  CHECK(source.segment_ends.empty() ||
            (source.segment_ends.front() >= 0 && source.segment_ends.back() == source.cols),
        "segments end at {} of {} columns", source.segment_ends.back(), source.cols);
}

}  // namespace

absl::StatusOr<weights::Weight> CpuPacker::Pack(const WeightSource& source) {
  if (!IsFloat(source.dtype)) {
    return InvalidArgument("expected a weight of float32, float16 or bfloat16, got {}",
                           NameOf(source.dtype));
  }
  CheckSource(source);
  weights::Weight weight;
  for (const WeightSource::RowBlock& block : source.blocks) weight.rows += block.rows;
  weight.cols = source.cols;
  weight.dtype = source.dtype;
  weight.segment_ends = source.segment_ends;
  if (weight.segment_ends.empty()) weight.segment_ends = {source.cols};

  const int64_t num_panels = (weight.rows + cpu::kLanes - 1) / cpu::kLanes;
  const int64_t panel_bytes = source.cols * cpu::kLanes * SizeOf(source.dtype);
  ASSIGN_OR_RETURN(weight.bytes,
                   device_.Allocate(CpuPackedBytes(weight.rows, weight.cols, weight.dtype)));
  auto* bytes = static_cast<std::byte*>(weight.bytes.data());
  pool_.ParallelFor(num_panels, [&](int64_t panel) {
    const PanelRows rows = RowsOfPanel(source, panel);
    if (SizeOf(source.dtype) == 2) {
      PackPanel<uint16_t>(rows, source.dtype, source.cols, bytes + panel * panel_bytes);
    } else {
      PackPanel<float>(rows, source.dtype, source.cols, bytes + panel * panel_bytes);
    }
  });
  return weight;
}

absl::StatusOr<Buffer> CpuPacker::PackVector(absl::Span<const float> values) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(float));
  ASSIGN_OR_RETURN(Buffer buffer, device_.Allocate(bytes));
  RETURN_IF_ERROR(device_.CopyFromHost(values.data(), bytes, buffer.data()));
  return buffer;
}

}  // namespace polyreme::backend
