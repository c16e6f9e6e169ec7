// Which way an all-reduce in the registered arena goes: plain NCCL or symmetric window, by size,
// from times measured at start as decode runs them: in a CUDA graph, one after another.
#pragma once

#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/status.h"
#include "parallel/comm/nccl_communicator.h"
#include "parallel/comm/nccl_group.h"

namespace polyreme::comm {

// Whether the window is faster at `bytes`, from timings at powers of two. False without any.
bool WindowWins(absl::Span<const AllReduceTiming> timings, int64_t bytes);

// A stream and a few bytes of device memory for what happens at start, outside the lane.
class NcclStage {
 public:
  static constexpr int64_t kFloats = 64;

  // Borrows the group: of one that has ended the memory is left to the process's end, because
  // giving it back would wait for kernels that may never finish.
  static absl::StatusOr<std::unique_ptr<NcclStage>> Make(const NcclGroup& group);
  ~NcclStage();
  NcclStage(const NcclStage&) = delete;
  NcclStage& operator=(const NcclStage&) = delete;

  cudaStream_t stream() const { return stream_; }
  float* memory() const { return memory_; }  // [kFloats]

 private:
  explicit NcclStage(const NcclGroup& group) : group_(group) {}
  const NcclGroup& group_;
  cudaStream_t stream_ = nullptr;
  float* memory_ = nullptr;
};

// values <- the extreme (or sum) of all ranks. At most kFloats.
absl::Status Agree(NcclGroup& group, const NcclStage& stage, ncclRedOp_t how, absl::Time deadline,
                   absl::Span<float> values);

// Times 8 KiB to 16 MiB (no more than the arena holds) in the arena, whose contents are lost, on
// the plain communicator and, where there is one, the one with windows. A collective: every rank
// of the group calls it with an arena of one size, and gets the same timings.
absl::StatusOr<std::vector<AllReduceTiming>> MeasureAllReduce(NcclGroup& group,
                                                              const NcclStage& stage,
                                                              TensorView arena,
                                                              absl::Time deadline);

}  // namespace polyreme::comm
