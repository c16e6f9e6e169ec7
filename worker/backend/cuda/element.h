// What kernels are told of a tensor. The .cu files are C++17 and know no abseil, no tensors: raw
// device pointers, sizes and a stream. Every launch returns cudaGetLastError() of its own launches,
// puts all work on the given stream, allocates nothing and never synchronises, so that it may be
// captured into a graph; pointers and sizes that a graph may not bake in lie in device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace polyreme::cuda {

enum class Element : uint8_t { kF32, kF16, kBF16 };
constexpr int64_t SizeOf(Element element) { return element == Element::kF32 ? 4 : 2; }

// As ops::HeadLayout: a fused qkv row is H query heads, then G key heads, then G value heads, of D.
struct Heads {
  int query_heads = 0;  // H
  int kv_heads = 0;     // G
  int head_dim = 0;     // D
  int64_t columns() const { return static_cast<int64_t>(query_heads + 2 * kv_heads) * head_dim; }
};

// The device arrays of a step; see ops::StepBatch. A position of -1 is a padding row: nothing is
// stored for it, its attention is zeros.
struct Step {
  int num_tokens = 0;                      // T
  int num_rows = 0;                        // R
  const int32_t* tokens = nullptr;         // [T]
  const int32_t* positions = nullptr;      // [T]
  const int32_t* token_rows = nullptr;     // [T]
  const int32_t* row_begins = nullptr;     // [R + 1]
  const int32_t* row_slots = nullptr;      // [R]
  const int32_t* block_table = nullptr;    // [slots, table_stride]
  int table_stride = 0;
  int tokens_per_block = 0;                // P
};

// One layer's pool: keys and values [blocks, P, G, D], of `element`.
struct Pool {
  void* keys = nullptr;
  void* values = nullptr;
  Element element = Element::kBF16;
};

}  // namespace polyreme::cuda
