// One matrix of a model as a backend wants it: packed bytes, storage type, shape, and the segments
// of its sums.
//
// A product y[t, n] = sum over k of x[t, k] * w[n, k] is accumulated segment by segment of k, and
// the segments' sums are added in one fixed tree (docs/ARCHITECTURE.md, "Layout must not change
// meaning"). A weight whose k axis is sharded (RowLinear) carries limits::kSumSegments / shards
// segments, each the same piece of the whole axis on every layout; any other weight carries one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "parallel/base/limits.h"
#include "parallel/base/status.h"
#include "parallel/tensor/device.h"
#include "parallel/tensor/tensor.h"
#include "worker/weights/dummy_values.h"

namespace polyreme::weights {

struct Weight {
  int64_t rows = 0;                   // N, outputs
  int64_t cols = 0;                   // K, inputs
  DType dtype = DType::kF32;          // storage of one element
  std::vector<int64_t> segment_ends;  // ascending, the last is `cols`; at most limits::kSumSegments
  Buffer bytes;                       // in the backend's own order; only its ops read it

  int64_t num_segments() const { return static_cast<int64_t>(segment_ends.size()); }
};

// Where a weight's values come from: blocks of rows in host memory (a mapped file) or to be
// generated, stacked on each other, so that q, k and v become one weight. Borrowed for the call.
struct WeightSource {
  // A window of a dummy tensor: element (row, col) of the block is the tensor's element at index
  // (first_row + row) * full_cols + first_col + col.
  struct Generated {
    DummyValues values;
    int64_t first_row = 0;
    int64_t first_col = 0;
    int64_t full_cols = 0;  // columns of the whole tensor
  };
  // One of three: data, generated, or neither: rows of zeros.
  struct RowBlock {
    const std::byte* data =
        nullptr;  // first element of the first row; element-aligned is not promised
    int64_t rows = 0;
    int64_t row_stride_bytes = 0;  // of data
    std::optional<Generated> generated = std::nullopt;
    bool is_zero() const { return data == nullptr && !generated.has_value(); }
  };
  std::vector<RowBlock> blocks;
  int64_t cols = 0;
  DType dtype = DType::kF32;          // F32, F16 or BF16
  std::vector<int64_t> segment_ends;  // as in Weight; empty means one segment
};

// The part of a backend that turns checkpoint bytes into weights.
class WeightPacker {
 public:
  virtual ~WeightPacker() = default;
  // ResourceExhausted when memory runs out, InvalidArgument on a dtype that the backend cannot
  // hold.
  virtual absl::StatusOr<Weight> Pack(const WeightSource& source) = 0;
  // A plain vector (norm gains, biases) as float32 on the device, [n].
  virtual absl::StatusOr<Buffer> PackVector(absl::Span<const float> values) = 0;
  // Gives back what a packer keeps between weights (pinned buffers, threads); the next Pack takes
  // it again. LoadShard calls it at its end, however that comes.
  virtual void ReleaseStaging() {}
};

}  // namespace polyreme::weights
