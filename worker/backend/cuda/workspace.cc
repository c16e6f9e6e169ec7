#include "worker/backend/cuda/workspace.h"

#include "worker/backend/cuda/sample_scratch.h"

namespace polyreme::cuda {
namespace {

constexpr auto kFloat = static_cast<int64_t>(sizeof(float));

int64_t GroupOf(const Heads& heads) {
  return heads.query_heads / heads.kv_heads;
}

// Partial results of a context that is cut into pieces, as many as PagedAttentionSplits gives.
int64_t PagedAttentionWorkspaceBytes(const Heads& heads, int num_multiprocessors) {
  return int64_t{4} * num_multiprocessors * GroupOf(heads) * (heads.head_dim + 2) * kFloat;
}

int64_t DecodePlanBytes(int max_rows, int num_blocks) {
  return kDecodeHeaderBytes + num_blocks * kDecodeShareBytes + max_rows * kDecodeRowBytes;
}

int64_t DecodePartialBytes(int max_rows, int num_blocks, const Heads& heads) {
  const int64_t pieces = int64_t{max_rows} * heads.kv_heads + num_blocks;
  return pieces * GroupOf(heads) * (heads.head_dim + 2) * kFloat;
}

int64_t Fa2FloatBytes(const Heads& heads, int num_multiprocessors) {
  // Contexts are split only as long as all pieces fit on the GPU at once, two on a multiprocessor.
  const int64_t pieces = 2 * num_multiprocessors / heads.kv_heads + 1;
  return heads.query_heads * pieces * kFa2MaxTile * (heads.head_dim + 1) * kFloat + 256;
}

int64_t Fa2IntBytes(int64_t max_tokens, int max_rows, const Heads& heads, int num_multiprocessors) {
  const int64_t pieces =
      (max_tokens * GroupOf(heads) + 15) / 16 + max_rows + 2 * num_multiprocessors;
  // Three indices and a flag for each piece, a border for each row, one for each token.
  return 16 * pieces + 8 * (max_rows + max_tokens) + 1024;
}

}  // namespace

AttentionPaths AttentionPathsOf(const AttentionSetup& setup, const Heads& heads,
                                int tokens_per_block) {
  AttentionPaths paths;
  const bool modern = setup.compute_capability >= 80;
  paths.fast_decode =
      modern && DecodeAttentionServes(setup.type, setup.type, heads, tokens_per_block);
  if (setup.have_fa2 && modern && setup.choice != backend::AttentionChoice::kOwn &&
      setup.type != Element::kF32) {
    if (heads.head_dim == 128 && setup.have_hopper && setup.compute_capability == 90) {
      paths.prompts = PromptPath::kHopper;
    } else if (heads.head_dim == 64 || heads.head_dim == 128) {
      paths.prompts = PromptPath::kFa2;
    }
  }
  return paths;
}

AttentionLimits AttentionLimitsOf(const ops::Workload& workload) {
  AttentionLimits limits;
  limits.tokens = workload.max_tokens;
  limits.rows = workload.max_rows;
  const int64_t per_block = std::max(workload.tokens_per_block, 1);
  limits.pages = workload.max_rows * ((workload.max_model_len + per_block - 1) / per_block);
  return limits;
}

AttentionParts AttentionPartsFor(const AttentionSetup& setup, const AttentionLimits& limits,
                                 const Heads& heads, const AttentionPaths& paths) {
  constexpr int64_t kInt = sizeof(int32_t);
  const int multiprocessors = setup.num_multiprocessors;
  AttentionParts parts;
  parts.partials = PagedAttentionWorkspaceBytes(heads, multiprocessors);
  if (paths.fast_decode) {
    const int blocks = 2 * multiprocessors;
    parts.decode_plan = DecodePlanBytes(limits.rows, blocks);
    parts.partials = std::max(parts.partials, DecodePartialBytes(limits.rows, blocks, heads));
  }
  // Each row is a single or a prompt.
  parts.staged = kInt * (4 * limits.rows + 64);
  if (paths.prompts != PromptPath::kPlain) parts.pages = kInt * limits.pages;
  if (paths.prompts == PromptPath::kFa2) {
    parts.fa2_ints = Fa2IntBytes(limits.tokens, limits.rows, heads, multiprocessors);
    parts.fa2_floats = Fa2FloatBytes(heads, multiprocessors);
  }
  if (paths.prompts == PromptPath::kHopper) {
    parts.staged += HopperPlanBytes((limits.tokens / kHopperTile + limits.rows) * heads.query_heads,
                                    multiprocessors);
  }
  return parts;
}

Heads HeadsOf(const ops::HeadLayout& layout) {
  return {static_cast<int>(layout.query_heads), static_cast<int>(layout.kv_heads),
          static_cast<int>(layout.head_dim)};
}

bool DecodeAttentionServes(Element type, Element pool, const Heads& heads, int tokens_per_block) {
  const int tiles = tokens_per_block / kDecodeTile;
  return type != Element::kF32 && pool == type && (heads.head_dim == 64 || heads.head_dim == 128) &&
         heads.query_heads <= kDecodeMaxGroup * heads.kv_heads &&
         tokens_per_block % kDecodeTile == 0 && tiles > 0 && (tiles & (tiles - 1)) == 0;
}

int64_t HopperPlanBytes(int64_t num_tiles, int num_multiprocessors) {
  return (kHopperArrays * num_tiles + num_multiprocessors + 1) *
         static_cast<int64_t>(sizeof(int32_t));
}

int64_t OpsWorkspaceBytes(const AttentionSetup& setup, const ops::Workload& workload) {
  const Heads heads = HeadsOf(workload.heads);
  const AttentionPaths paths = AttentionPathsOf(setup, heads, workload.tokens_per_block);
  return AttentionPartsFor(setup, AttentionLimitsOf(workload), heads, paths).device_bytes() +
         kProductWorkspaceBytes + SampleScratchBytes(workload.max_samples, workload.vocabulary);
}

int64_t PackedWeightBytes(Element type, int64_t rows, int64_t cols) {
  return rows * cols * SizeOf(type);
}

}  // namespace polyreme::cuda
