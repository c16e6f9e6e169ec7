// A place with memory and an ordered queue of work on it.
//
// Device hands out Buffers (owned bytes). A Lane is one ordered queue of work with its scratch
// memory and its first error: later calls fall through, like a stream that has gone bad, and it is
// asked once per step.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "parallel/base/status.h"
#include "parallel/tensor/tensor.h"

namespace polyreme {

// Owned bytes on some device; move-only. The deleter knows the device.
class Buffer {
 public:
  using Deleter = std::function<void(void*)>;
  Buffer() = default;
  Buffer(void* data, int64_t bytes, Deleter deleter)
      : data_(data, std::move(deleter)), bytes_(bytes) {}

  void* data() const { return data_.get(); }
  int64_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<void, Deleter> data_{nullptr, [](void*) {}};
  int64_t bytes_ = 0;
};

// A point in a lane's queue; grows.
struct LaneMark {
  int64_t value = 0;
};

// What makes two steps replay the same recorded work: the padded number of rows
// (Device::ReplayRows) and of samples. Rows that carry several tokens are never recorded
// (decode_only false).
struct ReplayKey {
  int32_t num_tokens = 0;
  int32_t num_samples = 0;
  bool decode_only = false;
};

// One ordered queue of device work. Used by one thread (the step thread), except ok, status, Fail
// and Wait, which any thread may call.
class Lane {
 public:
  virtual ~Lane() = default;

  virtual bool ok() const = 0;
  // The first error, or ok.
  virtual absl::Status status() const = 0;
  // Keeps the first error and runs the failure hook once. The hook aborts this rank's process
  // group, so that peers that wait in a collective fail too instead of hanging. Any thread.
  virtual void Fail(absl::Status why) = 0;
  virtual void SetFailureHook(std::function<void(const absl::Status&)> hook) = 0;

  // Memory from the lane's arena, 64-byte aligned, valid until Rewind or RestoreScratch; CHECKs the
  // arena's size.
  virtual TensorView Scratch(DType dtype, const Shape& shape) = 0;
  virtual void Rewind() = 0;
  // Arena watermark: what was taken after SaveScratch is given back by RestoreScratch (the
  // temporaries of a layer).
  virtual int64_t SaveScratch() const = 0;
  virtual void RestoreScratch(int64_t watermark) = 0;

  virtual LaneMark Mark() = 0;
  // Waits until the lane has reached `mark`. The lane's first error, or DeadlineExceeded.
  virtual absl::Status Wait(LaneMark mark, absl::Time deadline) = 0;
  // Runs the body, or replays what an earlier call with an equal key recorded. A recorded body is
  // read once: all that differs from one step to the next must lie in memory at fixed addresses.
  virtual void Replay(const ReplayKey& key, absl::FunctionRef<void()> body) = 0;
  // The whole arena; null on a lane without one.
  virtual TensorView arena() const { return {}; }
  // For the plugin's own code; null on CPU.
  virtual void* native_stream() const { return nullptr; }
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;
  // 64-byte aligned, zeroed. ResourceExhausted with what was asked for and what is free.
  virtual absl::StatusOr<Buffer> Allocate(int64_t bytes) = 0;
  // scratch_bytes: the arena of the lane.
  virtual absl::StatusOr<std::unique_ptr<Lane>> MakeLane(int64_t scratch_bytes) = 0;
  // Blocking copies, for loading and tests. Sizes equal.
  virtual absl::Status CopyFromHost(const void* from, int64_t bytes, void* to) = 0;
  virtual absl::Status CopyToHost(const void* from, int64_t bytes, void* to) = 0;
  // In lane order: host memory must stay until the lane has passed this point.
  virtual void Upload(Lane& lane, const void* from, int64_t bytes, void* to) = 0;
  virtual void Download(Lane& lane, const void* from, int64_t bytes, void* to) = 0;
  // In lane order, from device memory to device memory.
  virtual void Copy(Lane& lane, const void* from, int64_t bytes, void* to) = 0;
  // Host memory for Upload and Download (pinned on a GPU).
  virtual absl::StatusOr<Buffer> AllocateHost(int64_t bytes) = 0;
  // Bytes free for the cache on this device now, and all that it has.
  virtual int64_t FreeBytes() const = 0;
  virtual int64_t TotalBytes() const = 0;
  // Bytes taken now: of the whole device, by whomever; where the device is the system's memory, of
  // this object's buffers, lanes' arenas and pinned memory alone.
  virtual int64_t UsedBytes() const { return TotalBytes() - FreeBytes(); }
  // Row counts that decode steps are padded to so that they can be replayed, ascending, the last
  // being max_rows; empty where recording gains nothing (CPU).
  virtual std::vector<int32_t> ReplayRows(int32_t max_rows) const {
    (void)max_rows;
    return {};
  }
};

}  // namespace polyreme
