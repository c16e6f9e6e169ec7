// Paged attention of a step: which kernel serves which rows, and the memory that they need.
//
// A step's rows are of two kinds, planned apart: decode rows (one token) and prompt rows (several).
//   decode rows  our own split-over-the-sequence kernel (sm_80 and newer, 16-bit cache, head width
//                64 or 128, up to 8 query heads per kv head); else the plain paged kernel
//   prompt rows  FlashInfer's Hopper path on sm_90, its FA2 path on sm_80 and newer; else the plain
//                paged kernel, which serves every type, head width and GPU from sm_70
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "parallel/base/status.h"
#include "worker/backend/backend.h"
#include "worker/backend/cuda/element.h"
#include "worker/backend/cuda/workspace.h"
#include "worker/ops/batch.h"
#include "worker/ops/ops.h"

namespace polyreme::cuda {

class Attention {
 public:
  struct Options {
    backend::AttentionChoice choice = backend::AttentionChoice::kAuto;
    Element type = Element::kBF16;  // of activations
    int compute_capability = 90;    // 10 * major + minor
    int num_multiprocessors = 132;
  };
  // FailedPrecondition: FlashInfer asked for and not in this build, or not for this GPU or type.
  static absl::StatusOr<std::unique_ptr<Attention>> Make(const Options& options);
  virtual ~Attention() = default;

  // What its memory follows from (OpsWorkspaceBytes).
  virtual const AttentionSetup& setup() const = 0;
  // Device and pinned host memory for steps as large as `workload` allows. Without it Plan takes
  // what it needs as it goes (tests).
  virtual absl::Status Reserve(const ops::Workload& workload) = 0;

  // Once per step, on the lane's stream, before the first Run, outside any capture. A decode-only
  // step's Run may have been captured earlier for the same number of rows: its launches then take
  // everything that differs from device memory.
  virtual absl::Status Plan(cudaStream_t stream, const ops::StepBatch& batch,
                            const Heads& heads) = 0;
  // y [T, H D] from qkv [T, (H + 2G) D], of `type`. May be captured for decode-only steps.
  virtual absl::Status Run(cudaStream_t stream, const ops::StepBatch& batch, const Heads& heads,
                           const void* qkv, const Pool& pool, float scale, void* y) = 0;
  // For the log: "own decode, FlashInfer (Hopper) prompts".
  virtual std::string Describe() const = 0;
};

}  // namespace polyreme::cuda
