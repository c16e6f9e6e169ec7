// A step's rows as arrays on the device, and one layer's pool of cache blocks.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "parallel/tensor/tensor.h"

namespace polyreme::ops {

// Letters: T tokens, R rows, S samples of the step, P tokens per block, B blocks a slot's table can
// name. Device pointers, valid until the lane's next Rewind; on CPU device and host are the same
// memory. Host spans are for planning attention, and hold the same values.
//
// Where decode steps are padded (Device::ReplayRows), padding rows come last, one token each: token
// 0, position -1, slot 0. Nothing is stored for them, and what is computed for them is never read;
// attention over no positions is zeros.
struct StepBatch {
  int32_t num_tokens = 0;                  // T
  int32_t num_rows = 0;                    // R
  int32_t num_samples = 0;                 // S
  const int32_t* tokens = nullptr;         // [T]; fed-back tokens are filled in on the lane
  const int32_t* positions = nullptr;      // [T] of each token in its sequence
  const int32_t* token_rows = nullptr;     // [T] which row a token belongs to
  const int32_t* row_begins = nullptr;     // [R + 1] first token of each row
  const int32_t* row_slots = nullptr;      // [R] row of block_table
  const int32_t* sample_tokens = nullptr;  // [S] index of the token that the head is applied to
  const int32_t* block_table = nullptr;    // [slots, table_stride] block ids, in order of position
  int32_t table_stride = 0;                // B
  int32_t tokens_per_block = 0;            // P
  // Each row is one token, so that the step may be recorded and replayed (Lane::Replay).
  bool decode_only() const { return num_tokens == num_rows; }
  absl::Span<const int32_t> host_row_begins;
  absl::Span<const int32_t> host_row_first_positions;  // [R]
};

// Keys and values of one layer: [blocks, P, G, D] each, G key-value heads held here.
struct LayerKv {
  TensorView keys;
  TensorView values;
};

// One block to copy onto another, in every layer.
struct BlockMove {
  int32_t from = 0;
  int32_t to = 0;
};

// cos and sin of every position, [positions, D]: first D/2 cosines, then D/2 sines, float32.
struct RopeTable {
  ConstTensorView cos_sin;
};

// How the columns of a fused qkv row are laid out: H query heads, then G key heads, then G value
// heads, of D each.
struct HeadLayout {
  int64_t query_heads = 0;  // H
  int64_t kv_heads = 0;     // G; H is a multiple of G
  int64_t head_dim = 0;     // D
  int64_t columns() const { return (query_heads + 2 * kv_heads) * head_dim; }
};

}  // namespace polyreme::ops
