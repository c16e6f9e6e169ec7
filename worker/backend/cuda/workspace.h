// The memory that the ops of a GPU take besides the lane's arena, from sizes alone and without
// CUDA: by these the plugin takes it, and by these a launch is planned where there is no GPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "worker/backend/backend.h"
#include "worker/backend/cuda/sizes.h"
#include "worker/ops/ops.h"

namespace polyreme::cuda {

inline constexpr int64_t kPartAlignment = 256;
inline int64_t Aligned(int64_t bytes) {
  return (bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
}

// Bytes of each part of attention's device memory, in this order; staged and fa2_ints lie in pinned
// memory too.
struct AttentionParts {
  int64_t staged = 0;
  int64_t fa2_ints = 0;
  int64_t pages = 0;
  int64_t decode_plan = 0;
  int64_t partials = 0;
  int64_t fa2_floats = 0;

  int64_t host_bytes() const { return Aligned(staged) + Aligned(fa2_ints); }
  int64_t device_bytes() const {
    return host_bytes() + Aligned(pages) + Aligned(decode_plan) + Aligned(partials) +
           Aligned(fa2_floats);
  }
  bool Holds(const AttentionParts& other) const {
    return staged >= other.staged && fa2_ints >= other.fa2_ints && pages >= other.pages &&
           decode_plan >= other.decode_plan && partials >= other.partials &&
           fa2_floats >= other.fa2_floats;
  }
  static AttentionParts Max(const AttentionParts& a, const AttentionParts& b) {
    return {std::max(a.staged, b.staged),     std::max(a.fa2_ints, b.fa2_ints),
            std::max(a.pages, b.pages),       std::max(a.decode_plan, b.decode_plan),
            std::max(a.partials, b.partials), std::max(a.fa2_floats, b.fa2_floats)};
  }
};

enum class PromptPath : uint8_t { kPlain, kFa2, kHopper };

// The kernels of one shape of heads.
struct AttentionPaths {
  bool fast_decode = false;  // DecodeAttention; else PagedAttention
  PromptPath prompts = PromptPath::kPlain;
};

// What the choice of kernels and their memory follow from.
struct AttentionSetup {
  backend::AttentionChoice choice = backend::AttentionChoice::kAuto;
  Element type = Element::kBF16;  // of activations
  int compute_capability = 90;    // 10 * major + minor
  int num_multiprocessors = 132;
  bool have_fa2 = true;  // in the plugin's build; FlashInfer
  bool have_hopper = true;
};
AttentionPaths AttentionPathsOf(const AttentionSetup& setup, const Heads& heads,
                                int tokens_per_block);

// The largest step.
struct AttentionLimits {
  int64_t tokens = 0;
  int rows = 0;
  int64_t pages = 0;  // of all rows
};
AttentionLimits AttentionLimitsOf(const ops::Workload& workload);
AttentionParts AttentionPartsFor(const AttentionSetup& setup, const AttentionLimits& limits,
                                 const Heads& heads, const AttentionPaths& paths);
Heads HeadsOf(const ops::HeadLayout& layout);

// A 16-bit type, the cache of the same; D 64 or 128; up to 8 query heads per kv head; blocks of 16,
// 32, 64, ... tokens.
bool DecodeAttentionServes(Element type, Element pool, const Heads& heads, int tokens_per_block);
// Of the Hopper path's plan.
int64_t HopperPlanBytes(int64_t num_tiles, int num_multiprocessors);

// All of CudaOps' workspace: attention's, cublasLt's, the sampler's.
int64_t OpsWorkspaceBytes(const AttentionSetup& setup, const ops::Workload& workload);

// Bytes of a packed weight: row-major, of the device's type, whatever is stored.
int64_t PackedWeightBytes(Element type, int64_t rows, int64_t cols);

}  // namespace polyreme::cuda
