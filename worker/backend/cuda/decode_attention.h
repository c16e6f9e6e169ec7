// Attention of rows of one token each, on tensor cores, split over the sequences: sm_80 and newer.
//
// The step's work is a line: for each row, for each kv head, the sequence's tiles of 16 positions.
// A fixed number of blocks (as many as the GPU holds at once) share it equally, whatever the
// lengths, so that one long sequence fills the GPU, and among short ones does not outlast them.
// Which block has which share is worked out on the device once per step (PlanDecode); the launches
// themselves depend on the number of rows only and may be recorded. Where a share's border cuts a
// row's kv head, partial results are kept in float32 and merged in order of position: the same
// step gives the same bits.
#pragma once

#include "worker/backend/cuda/element.h"

namespace polyreme::cuda {

// Blocks to launch on the current device; prepares the kernel. Not to be called in a capture.
cudaError_t DecodeAttentionBlocks(Element type, int head_dim, int* blocks);

struct DecodeAttentionArguments {
  Element type = Element::kBF16;
  Step step;
  Heads heads;
  // The step's rows to serve: [num_rows] on the device, or null for all of them.
  const int32_t* rows = nullptr;
  int num_rows = 0;
  int num_blocks = 0;
  void* plan = nullptr;       // AttentionParts::decode_plan, 16-byte aligned
  float* partials = nullptr;  // AttentionParts::partials
};

// Once per step.
cudaError_t PlanDecode(cudaStream_t stream, const DecodeAttentionArguments& arguments);
// For each layer. y [T, H D]: rows of other tokens stay as they are.
cudaError_t DecodeAttention(cudaStream_t stream, const DecodeAttentionArguments& arguments,
                            const void* qkv, const Pool& pool, float scale, void* y);

}  // namespace polyreme::cuda
