// A lane on a CUDA stream.
//
// Uploads are gathered (upload_ring.h) and leave before the next thing on the stream: whoever
// launches asks for the stream each time, which is what sends them off. Marks are events. Decode
// steps are recorded as CUDA graphs, one for each ReplayKey.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string_view>
#include <utility>

#include "parallel/tensor/device.h"
#include "worker/backend/cuda/upload_ring.h"
#include "worker/backend/lane_failure.h"

namespace polyreme::cuda {

class CudaLane final : public Lane {
 public:
  // record: whether Replay records. Errors of CUDA.
  static absl::StatusOr<std::unique_ptr<CudaLane>> Make(int32_t device_index, Buffer arena,
                                                        bool record);
  // Waits for the work on the stream, some seconds at most: what cannot be ended is left to the end
  // of the process.
  ~CudaLane() override;

  bool ok() const override { return failure_.ok(); }
  absl::Status status() const override { return failure_.status(); }
  void Fail(absl::Status why) override { failure_.Fail(std::move(why)); }
  void SetFailureHook(std::function<void(const absl::Status&)> hook) override {
    failure_.SetHook(std::move(hook));
  }

  TensorView Scratch(DType dtype, const Shape& shape) override;
  void Rewind() override { taken_ = 0; }
  int64_t SaveScratch() const override { return taken_; }
  void RestoreScratch(int64_t watermark) override;
  TensorView arena() const override;

  LaneMark Mark() override;
  // Polls: a stream that hangs in a collective is left as soon as the lane fails. An error of CUDA
  // fails the lane.
  absl::Status Wait(LaneMark mark, absl::Time deadline) override;
  // Scratch must stand at the same watermark on each call with one key.
  void Replay(const ReplayKey& key, absl::FunctionRef<void()> body) override;
  // Makes the device current, sends off gathered uploads, and returns the stream: ask anew for each
  // launch. Step thread.
  void* native_stream() const override { return stream(); }
  cudaStream_t stream() const;

  // As Device's. Nothing but Copy can be recorded.
  void Upload(const void* from, int64_t bytes, void* to);
  void Download(const void* from, int64_t bytes, void* to);
  void Copy(const void* from, int64_t bytes, void* to);

  bool recording() const { return recording_; }
  // True if `error` is none; fails the lane with `what` otherwise.
  bool Check(cudaError_t error, std::string_view what) const;

 private:
  // A mark's event is used again this many marks later; who waits for an old mark then waits for a
  // later one, which implies it.
  static constexpr size_t kMarkEvents = 256;
  struct GraphDeleter {
    void operator()(cudaGraphExec_t graph) const { (void)cudaGraphExecDestroy(graph); }
  };
  struct Recording {
    std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, GraphDeleter> graph;
    int64_t watermark = 0;
  };

  CudaLane(int32_t device_index, Buffer arena, bool record)
      : device_index_(device_index), record_(record), arena_(std::move(arena)) {}
  // False: the stream is still busy.
  bool Drain() const;
  void Record(const ReplayKey& key, absl::FunctionRef<void()> body);
  cudaEvent_t EventOf(int64_t mark) const {
    return mark_events_[static_cast<size_t>(mark) % kMarkEvents];
  }

  const int32_t device_index_;
  const bool record_;
  Buffer arena_;
  int64_t taken_ = 0;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<UploadRing> uploads_;
  std::array<cudaEvent_t, kMarkEvents> mark_events_{};
  std::atomic<int64_t> marks_{0};
  bool recording_ = false;
  std::map<std::pair<int32_t, int32_t>, Recording> recordings_;  // by tokens and samples
  mutable backend::LaneFailure failure_;
};

}  // namespace polyreme::cuda
