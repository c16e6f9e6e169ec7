// Kernels of loading: weights converted to the backend's type, and dummy weights made in place. As
// element.h has it: on the given stream, nothing allocated, sm_70 and newer.
#pragma once

#include "worker/backend/cuda/element.h"
#include "worker/weights/dummy_values.h"

namespace polyreme::cuda {

// to[i] = from[i], to nearest even, through float32; `count` elements. Where to_type is kF16,
// adds to *overflows (device memory) how many finite values became infinite. Pointers are aligned
// to their elements.
cudaError_t ConvertWeights(cudaStream_t stream, const void* from, Element from_type, int64_t count,
                           void* to, Element to_type, unsigned long long* overflows);

// A window of a dummy tensor; see weights::WeightSource::Generated.
struct DummyWindow {
  weights::DummyValues values;
  int64_t first_row = 0;
  int64_t first_col = 0;
  int64_t full_cols = 0;
};
// to [rows, cols] of to_type: the window's values rounded to stored_type, then converted.
cudaError_t MakeDummyWeights(cudaStream_t stream, const DummyWindow& window, Element stored_type,
                             int64_t rows, int64_t cols, void* to, Element to_type);

}  // namespace polyreme::cuda
