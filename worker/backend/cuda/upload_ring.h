// Gathers small uploads to the GPU into one copy from pinned memory and one small kernel.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/base/status.h"
#include "worker/backend/cuda/upload.h"

namespace polyreme::cuda {

// Of one stream, used by its thread, with the device current. The bytes of a piece are copied when
// it is added. The ring has several segments; one may be filled again when its copy has left it.
class UploadRing {
 public:
  static constexpr int64_t kMaxPieceBytes = 64 << 10;

  static absl::StatusOr<std::unique_ptr<UploadRing>> Make(cudaStream_t stream);
  // The stream must have passed all that was flushed.
  ~UploadRing();
  UploadRing(const UploadRing&) = delete;
  UploadRing& operator=(const UploadRing&) = delete;

  // False: too large, no room beside what is pending, over a place that is pending, or the GPU
  // still reads the segment whose turn it is. After a Flush only the first and the last can be.
  bool Add(const void* from, int64_t bytes, void* to);
  // Puts what is pending on the stream.
  cudaError_t Flush();
  bool empty() const { return pending_.empty(); }

 private:
  static constexpr size_t kSegments = 8;
  static constexpr int64_t kSegmentBytes = 256 << 10;
  static constexpr size_t kMaxPieces = 512;
  // The table of pieces goes behind them.
  static constexpr int64_t kDataBytes =
      kSegmentBytes - 16 - static_cast<int64_t>(kMaxPieces * sizeof(UploadEntry));

  explicit UploadRing(cudaStream_t stream) : stream_(stream) { pending_.reserve(kMaxPieces); }
  bool SegmentIsFree();
  bool OverlapsPending(const void* to, int64_t bytes) const;
  std::byte* HostSegment() const { return host_ + segment_ * kSegmentBytes; }
  std::byte* DeviceSegment() const { return device_ + segment_ * kSegmentBytes; }

  const cudaStream_t stream_;
  std::byte* host_ = nullptr;    // [kSegments, kSegmentBytes], pinned
  std::byte* device_ = nullptr;  // the same on the device
  std::array<cudaEvent_t, kSegments> copied_{};
  std::array<bool, kSegments> used_{};
  size_t segment_ = 0;  // whose turn it is
  int64_t data_bytes_ = 0;
  int64_t max_piece_ = 0;
  std::vector<UploadEntry> pending_;
};

}  // namespace polyreme::cuda
