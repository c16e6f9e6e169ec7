// Prompt rows through FlashInfer's kernels (Ye et al. 2025): the FA2 path for sm_80 and newer, the
// Hopper path for sm_90a. 16-bit types, the cache of the same type as the activations.
//
// Both are planned on the host once per step, into pinned memory that is copied to the device; what
// FlashInfer says of a bad argument comes back as a message, never as an exception.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "worker/backend/cuda/element.h"

namespace polyreme::cuda {

struct FlashInferStatus {
  cudaError_t error = cudaSuccess;
  std::string message;  // with error == cudaSuccess: FlashInfer's own complaint
  bool ok() const { return error == cudaSuccess && message.empty(); }
};

// The rows to serve. Host arrays are read while planning, device arrays hold the same values.
struct FlashInferRows {
  int num_rows = 0;
  int tokens_per_block = 0;
  const int32_t* token_begins = nullptr;  // host, [n + 1]; row i is tokens [begins[i], begins[i+1])
  const int32_t* token_counts = nullptr;  // host, [n]
  const int32_t* page_begins = nullptr;   // host, [n + 1] into the list of pages
  const int32_t* lengths = nullptr;       // host, [n] positions, the row's own tokens included
  const int32_t* device_token_begins = nullptr;
  const int32_t* device_page_begins = nullptr;
  const int32_t* device_last_page_lengths = nullptr;  // [n] positions in the last page
  const int32_t* device_pages = nullptr;              // block ids
};

struct FlashInferTensors {
  Element type = Element::kBF16;
  Heads heads;
  const void* qkv = nullptr;  // [T, (H + 2G) D], q in its first H D columns
  int64_t num_tokens = 0;     // T
  Pool pool;
  float scale = 1;
  void* y = nullptr;  // [T, H D]
};

// --- FA2 path: D 64 or 128. Rows follow each other: token_begins[i] + token_counts[i] ==
// token_begins[i + 1], and token_begins[0] == 0.
struct Fa2Plan {
  int64_t values[15] = {};  // FlashInfer's own
};
struct Fa2Workspace {
  void* floats = nullptr;  // device; partial results of rows whose context is split
  int64_t float_bytes = 0;
  void* ints = nullptr;  // device
  void* host_ints = nullptr;
  int64_t int_bytes = 0;
};
FlashInferStatus PlanFa2(cudaStream_t stream, const FlashInferRows& rows, const Heads& heads,
                         const Fa2Workspace& workspace, Fa2Plan* plan);
FlashInferStatus RunFa2(cudaStream_t stream, const FlashInferRows& rows,
                        const FlashInferTensors& tensors, const Fa2Workspace& workspace,
                        const Fa2Plan& plan);

// --- Hopper path: D 128. Rows may leave gaps between them. The plan is our own, after
// PrefillSM90Plan: tiles of 128 tokens of each head, the longest context first, each to the
// multiprocessor with the least work so far.
struct HopperPlan {
  int num_tiles = 0;
  int num_multiprocessors = 0;
};
// Writes HopperPlanBytes (workspace.h) at host_ints, to be copied to the device.
HopperPlan PlanHopper(const FlashInferRows& rows, const Heads& heads, int num_multiprocessors,
                      int32_t* host_ints);
FlashInferStatus RunHopper(cudaStream_t stream, const FlashInferRows& rows,
                           const FlashInferTensors& tensors, const int32_t* device_ints,
                           const HopperPlan& plan);

}  // namespace polyreme::cuda
