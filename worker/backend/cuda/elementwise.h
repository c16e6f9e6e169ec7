// Kernels whose time is the bytes they move. T tokens, E width, F feed-forward columns, D head
// width. Activations are of `type`; gains, biases and the rope table are float32; arithmetic is
// float32 throughout, rounded once on storing. Any sizes: 16-byte accesses where widths and
// pointers allow, scalar ones otherwise. sm_70 and newer. Meanings: worker/ops/ops.h.
#pragma once

#include "worker/backend/cuda/element.h"

namespace polyreme::cuda {

// table [num_rows, E] of table_type; zeros where tokens[t] is outside [first_row, first_row +
// num_rows).
cudaError_t Embed(cudaStream_t stream, Element type, const int32_t* tokens, const void* table,
                  Element table_type, int64_t first_row, int64_t num_rows, int64_t T, int64_t E,
                  void* y);
cudaError_t RmsNorm(cudaStream_t stream, Element type, const void* x, const float* gain,
                    float epsilon, int64_t T, int64_t E, void* y);
// x += delta, rounded to `type`; y = RmsNorm of the rounded x.
cudaError_t AddRmsNorm(cudaStream_t stream, Element type, const void* delta, void* x,
                       const float* gain, float epsilon, int64_t T, int64_t E, void* y);
cudaError_t Add(cudaStream_t stream, Element type, const void* delta, void* x, int64_t count);
cudaError_t AddBias(cudaStream_t stream, Element type, const float* bias, int64_t T, int64_t N,
                    void* x);
cudaError_t NormHeads(cudaStream_t stream, Element type, const Heads& heads, const float* q_gain,
                      const float* k_gain, float epsilon, int64_t T, void* qkv);
// Rotates q and k of qkv [T, (H + 2G) D] in place, stores k and v to the pool. cos_sin [positions,
// D] float32. The pool may be of another element than `type`.
cudaError_t RotateAndStore(cudaStream_t stream, Element type, const Step& step, const Heads& heads,
                           const float* cos_sin, void* qkv, const Pool& pool);
// x [T, 2F] -> y [T, F].
cudaError_t SiluGate(cudaStream_t stream, Element type, const void* x, int64_t T, int64_t F,
                     void* y);
// y[i] = x[rows[i]], rows of row_bytes (a multiple of 2).
cudaError_t GatherRows(cudaStream_t stream, const void* x, const int32_t* rows, int64_t num_rows,
                       int64_t row_bytes, void* y);
// moves: [num] pairs (from, to) of blocks of block_bytes (a multiple of 16) in each of keys and
// values. Made in their order: a later move may overwrite what an earlier one has read.
cudaError_t CopyBlocks(cudaStream_t stream, void* keys, void* values, int64_t block_bytes,
                       const int32_t* moves, int num);

}  // namespace polyreme::cuda
