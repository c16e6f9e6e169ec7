// y[T, N] = x[T, K] · wᵀ on the GPU: our own GEMV where it wins, cublasLt with an algorithm timed
// at start otherwise.
//
// Weights are [N, K] row-major of the activations' type (Weight::segment_ends mean nothing here:
// sums on a GPU are in the library's order). The table of algorithms is keyed by GPU, driver and
// library, and by (N, K, type of y, bucket of T); it is kept in a file, so that the next start
// neither waits nor chooses differently.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "parallel/base/status.h"
#include "worker/backend/cuda/element.h"

namespace polyreme::cuda {

class Products {
 public:
  struct Options {
    std::string cache_directory;  // empty: no file
  };
  // One weight that Run will see.
  struct Shape {
    const void* weight = nullptr;  // [N, K]
    int64_t n = 0;
    int64_t k = 0;
    int64_t max_rows = 0;  // the largest T
    Element out = Element::kBF16;
  };

  // Opens cublasLt. FailedPrecondition: which library is missing, or too old, and what is needed.
  static absl::StatusOr<std::unique_ptr<Products>> Make(Element type, const Options& options);
  virtual ~Products() = default;

  // Chooses an algorithm for each shape and bucket of rows, from the file or by timing candidates
  // over the weights given (several of one shape are rotated, so that no cache helps). Blocks.
  // `scratch_x`, `scratch_y` are found by itself and freed again. Errors of CUDA as they are.
  virtual absl::Status Tune(cudaStream_t stream, absl::Span<const Shape> shapes) = 0;
  // What Tune will keep on the device (cublasLt's workspace).
  virtual int64_t workspace_bytes() const = 0;

  // May be captured after Tune. out: Element of y (of `type`, or kF32 for logits). Without an entry
  // in the table our GEMV serves what it takes, and else the library's own heuristic decides, once
  // per shape and bucket, and is remembered; the first such call takes the workspace, if Tune has
  // not. Any N, K and alignment: what cublasLt does not take, a plain kernel serves. One thread,
  // and one stream at a time.
  virtual absl::Status Run(cudaStream_t stream, const void* x, int64_t T, const void* w, int64_t n,
                           int64_t k, void* y, Element out) = 0;
};

}  // namespace polyreme::cuda
