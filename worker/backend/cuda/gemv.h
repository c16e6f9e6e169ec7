// Our own products y[T, N] = x[T, K] · wᵀ, w [N, K] row-major: for a row or two, whose time is the
// reading of w, and for what no library takes. Sums are float32, in an order that depends on N, K
// and the variant only. sm_70 and newer.
#pragma once

#include "worker/backend/cuda/element.h"

namespace polyreme::cuda {

// Ways to share out the rows and columns of w among warps; which is best depends on the shape.
constexpr int kGemvVariants = 5;
constexpr int64_t kGemvMaxRows = 2;

// Whether Gemv takes it: x and w of a 16-bit type, T within kGemvMaxRows, K a multiple of 8, x and
// w at multiples of 16 bytes.
bool GemvTakes(Element type, const void* x, int64_t T, const void* w, int64_t K);
// y of `type` or float. Only what GemvTakes; variant in [0, kGemvVariants).
cudaError_t Gemv(cudaStream_t stream, int variant, Element type, const void* x, int64_t T,
                 const void* w, int64_t N, int64_t K, void* y, Element out);

// Any sizes, types and alignment; not fast.
cudaError_t PlainProduct(cudaStream_t stream, Element type, const void* x, int64_t T, const void* w,
                         int64_t N, int64_t K, void* y, Element out);

// Fills x with values spread over [-1, 1]: what products are timed on. Zeros would draw less power
// and so run at another clock.
cudaError_t FillForTiming(cudaStream_t stream, Element type, int64_t count, void* x);

}  // namespace polyreme::cuda
