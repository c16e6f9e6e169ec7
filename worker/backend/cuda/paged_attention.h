// Paged attention in its plainest form: any head width up to 256, any group of query heads, any
// types, decode and prompt rows alike, sm_70 and newer. What no faster kernel serves comes here.
#pragma once

#include "worker/backend/cuda/element.h"

namespace polyreme::cuda {

inline constexpr int kMaxPagedHeadDim = 256;

struct PagedAttentionArguments {
  Element type = Element::kBF16;  // of qkv and y
  Step step;
  Heads heads;
  const void* qkv = nullptr;  // [T, (H + 2G) D]
  Pool pool;
  float scale = 1;
  void* y = nullptr;  // [T, H D]
  // Which rows: those of one token, those of more, or both; but none of tokens [skip_begin,
  // skip_end). The others' y stay as they are.
  bool single_rows = true;
  bool prompt_rows = true;
  int skip_begin = 0;
  int skip_end = 0;
  // Above 1 the context is cut into as many pieces, for steps whose rows are one token each.
  // PagedAttentionSplits gives what workspace of AttentionParts::partials is enough for.
  int num_splits = 1;
  float* workspace = nullptr;
};

// Depends on the number of tokens only, so that a recorded step fits each replay.
int PagedAttentionSplits(int num_tokens, const Heads& heads, int num_multiprocessors);
cudaError_t PagedAttention(cudaStream_t stream, const PagedAttentionArguments& arguments);

// The blocks of some of the step's rows one after the other, as FlashInfer wants them: those of
// row rows[i] at pages[page_begins[i]] up to page_begins[i + 1]. Device arrays.
cudaError_t GatherPages(cudaStream_t stream, const Step& step, const int32_t* rows,
                        const int32_t* page_begins, int num_rows, int32_t* pages);

}  // namespace polyreme::cuda
