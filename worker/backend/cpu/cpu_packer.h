// Weights as the CPU's products read them: panels of 16 outputs, [ceil(N / 16)][K][16] in storage
// type, zeros behind row N.
#pragma once

#include "parallel/tensor/device.h"
#include "worker/backend/cpu/thread_pool.h"
#include "worker/weights/weight.h"

namespace polyreme::backend {

class CpuPacker final : public weights::WeightPacker {
 public:
  CpuPacker(Device& device, ThreadPool& pool) : device_(device), pool_(pool) {}
  absl::StatusOr<weights::Weight> Pack(const weights::WeightSource& source) override;
  absl::StatusOr<Buffer> PackVector(absl::Span<const float> values) override;

 private:
  Device& device_;
  ThreadPool& pool_;
};

}  // namespace polyreme::backend
