// The least Lane there can be: work is done when it is asked for.
#pragma once

#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "parallel/tensor/device.h"

namespace polyreme {

class TestLane final : public Lane {
 public:
  bool ok() const override { return status().ok(); }
  absl::Status status() const override {
    const std::lock_guard lock(mutex_);
    return status_;
  }
  void Fail(absl::Status why) override {
    CHECK(!why.ok());
    {
      const std::lock_guard lock(mutex_);
      if (!status_.ok()) return;
      status_ = why;
    }
    if (hook_) hook_(why);
  }
  void SetFailureHook(std::function<void(const absl::Status&)> hook) override {
    hook_ = std::move(hook);
  }
  TensorView Scratch(DType dtype, const Shape& shape) override {
    blocks_.emplace_back(static_cast<size_t>(shape.num_elements() * SizeOf(dtype)));
    return {blocks_.back().data(), dtype, shape};
  }
  void Rewind() override { blocks_.clear(); }
  int64_t SaveScratch() const override { return std::ssize(blocks_); }
  void RestoreScratch(int64_t watermark) override {
    blocks_.resize(static_cast<size_t>(watermark));
  }
  LaneMark Mark() override { return {}; }
  absl::Status Wait(LaneMark, absl::Time) override { return status(); }
  void Replay(const ReplayKey&, absl::FunctionRef<void()> body) override { body(); }

 private:
  mutable std::mutex mutex_;
  absl::Status status_;  // guarded by mutex_
  std::function<void(const absl::Status&)> hook_;
  std::vector<std::vector<std::byte>> blocks_;
};

}  // namespace polyreme
