// Ranks as threads, a GPU each, joined through NCCL.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "parallel/comm/nccl_communicator.h"
#include "parallel/tensor/device.h"

namespace polyreme::comm {

// A lane with a stream of the current GPU and nothing else.
class StreamLane final : public Lane {
 public:
  StreamLane();
  ~StreamLane() override;

  bool ok() const override { return status().ok(); }
  absl::Status status() const override;
  void Fail(absl::Status why) override;
  void SetFailureHook(std::function<void(const absl::Status&)> hook) override;
  TensorView Scratch(DType, const Shape&) override { return {}; }
  void Rewind() override {}
  int64_t SaveScratch() const override { return 0; }
  void RestoreScratch(int64_t) override {}
  LaneMark Mark() override { return {}; }
  // Until all work is done: the lane's first error or DeadlineExceeded.
  absl::Status Wait(LaneMark, absl::Time deadline) override;
  void Replay(const ReplayKey&, absl::FunctionRef<void()> body) override { body(); }
  void* native_stream() const override { return stream_; }

  cudaStream_t stream() const { return stream_; }
  // Wait within ten seconds.
  absl::Status Drain();

 private:
  mutable std::mutex mutex_;
  absl::Status status_;  // guarded by mutex_
  std::function<void(const absl::Status&)> hook_;
  cudaStream_t stream_ = nullptr;
};

// GPUs that there are; 0 without a driver.
int CountGpus();

struct GpuRank {
  int rank = 0;
  int size = 0;
  NcclFactory* factory = nullptr;
  Communicator* group = nullptr;
  StreamLane* lane = nullptr;
};
// Runs `body` on a thread per rank, rank r on GPU r, and waits for its lane; the first error of
// each rank: of joining, else the lane's.
std::vector<absl::Status> RunGpuRanks(int ranks, const std::function<void(GpuRank&)>& body);
// The same, and expects all to be well.
void ExpectGpuRanksWell(int ranks, const std::function<void(GpuRank&)>& body);

GroupSpec SpecOfRanks(int rank, int ranks, absl::Duration patience);

}  // namespace polyreme::comm
