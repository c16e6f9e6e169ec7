// The CPU as a device: memory straight from the system, and a lane that runs its work at once on
// the calling thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "parallel/tensor/device.h"
#include "worker/backend/lane_failure.h"

namespace polyreme::backend {

class CpuLane final : public Lane {
 public:
  explicit CpuLane(Buffer arena) : arena_(std::move(arena)) {}

  bool ok() const override { return failure_.ok(); }
  absl::Status status() const override { return failure_.status(); }
  void Fail(absl::Status why) override { failure_.Fail(std::move(why)); }
  void SetFailureHook(std::function<void(const absl::Status&)> hook) override {
    failure_.SetHook(std::move(hook));
  }

  TensorView Scratch(DType dtype, const Shape& shape) override;
  void Rewind() override { used_ = 0; }
  int64_t SaveScratch() const override { return used_; }
  void RestoreScratch(int64_t watermark) override;

  // All work before a mark is done when Mark returns, so that Wait only reports the first error.
  LaneMark Mark() override { return {++marks_}; }
  absl::Status Wait(LaneMark mark, absl::Time deadline) override;
  void Replay(const ReplayKey& key, absl::FunctionRef<void()> body) override;

 private:
  Buffer arena_;
  int64_t used_ = 0;
  std::atomic<int64_t> marks_{0};
  LaneFailure failure_;
};

// Buffers are fresh anonymous mappings: zeroed, at least 64-byte aligned, and pages that nobody
// touches cost nothing.
class CpuDevice final : public Device {
 public:
  std::string name() const override;  // the processor's, as it calls itself
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override;
  absl::StatusOr<std::unique_ptr<Lane>> MakeLane(int64_t scratch_bytes) override;
  absl::Status CopyFromHost(const void* from, int64_t bytes, void* to) override;
  absl::Status CopyToHost(const void* from, int64_t bytes, void* to) override;
  void Upload(Lane& lane, const void* from, int64_t bytes, void* to) override;
  void Download(Lane& lane, const void* from, int64_t bytes, void* to) override;
  absl::StatusOr<Buffer> AllocateHost(int64_t bytes) override { return Allocate(bytes); }
  // What the system could give without swapping, within this process's control group.
  void Copy(Lane& lane, const void* from, int64_t bytes, void* to) override;
  int64_t FreeBytes() const override;
  int64_t TotalBytes() const override;
  int64_t UsedBytes() const override { return *used_; }

 private:
  // Buffers may outlive the device.
  const std::shared_ptr<std::atomic<int64_t>> used_ = std::make_shared<std::atomic<int64_t>>(0);
};

}  // namespace polyreme::backend
