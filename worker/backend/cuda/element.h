// What kernels are told of a tensor. The .cu files are C++17 and know no abseil, no tensors: raw
// device pointers, sizes and a stream. Every launch returns cudaGetLastError() of its own launches,
// puts all work on the given stream, allocates nothing and never synchronises, so that it may be
// captured into a graph; pointers and sizes that a graph may not bake in lie in device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "worker/backend/cuda/sizes.h"

namespace polyreme::cuda {

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
