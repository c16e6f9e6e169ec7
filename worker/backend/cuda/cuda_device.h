// One GPU of this process: memory, copies, and lanes (cuda_lane.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/tensor/device.h"

namespace polyreme::cuda {

// Any thread; each call makes the device current on its thread.
class CudaDevice final : public Device {
 public:
  // Gives the memory of a lane's arena, 64-byte aligned and zeroed.
  using ArenaAllocator = std::function<absl::StatusOr<Buffer>(int64_t bytes)>;
  struct Options {
    int32_t index = 0;         // GPU ordinal, among those visible to this process
    bool record_steps = true;  // false: lanes record nothing, ReplayRows is empty
  };

  // In one sentence with what was found and what is needed: as CountGpus (describe.h);
  // FailedPrecondition, no such GPU, or one that the build has no code for.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Make(const Options& options);
  ~CudaDevice() override;

  std::string name() const override { return properties_.name; }
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override;
  absl::StatusOr<std::unique_ptr<Lane>> MakeLane(int64_t scratch_bytes) override;
  absl::Status CopyFromHost(const void* from, int64_t bytes, void* to) override;
  absl::Status CopyToHost(const void* from, int64_t bytes, void* to) override;
  // The lane is one of this device. Small ones are copied at the call and gathered into one upload,
  // which leaves just before whatever comes next on the lane; `from` must stay all the same.
  void Upload(Lane& lane, const void* from, int64_t bytes, void* to) override;
  void Download(Lane& lane, const void* from, int64_t bytes, void* to) override;
  void Copy(Lane& lane, const void* from, int64_t bytes, void* to) override;
  absl::StatusOr<Buffer> AllocateHost(int64_t bytes) override;
  int64_t FreeBytes() const override;
  int64_t TotalBytes() const override;
  // 1, 2, 4, then by 8 to 64, then by 16.
  std::vector<int32_t> ReplayRows(int32_t max_rows) const override;

  // Whence lanes made from now on have their arenas; by default from Allocate. (NCCL's own memory
  // serves its symmetric windows.)
  void SetArenaAllocator(ArenaAllocator allocator) { arena_allocator_ = std::move(allocator); }

  int32_t index() const { return options_.index; }
  int compute_capability() const { return 10 * properties_.major + properties_.minor; }
  int num_multiprocessors() const { return properties_.multiProcessorCount; }

 private:
  CudaDevice(const Options& options, const cudaDeviceProp& properties)
      : options_(options), properties_(properties) {}
  absl::Status BlockingCopy(const void* from, int64_t bytes, void* to, const char* what);

  const Options options_;
  const cudaDeviceProp properties_;
  // For blocking copies; does not wait for lanes, nor they for it.
  cudaStream_t copy_stream_ = nullptr;
  ArenaAllocator arena_allocator_;
};

}  // namespace polyreme::cuda
