#include "worker/backend/cuda/upload_ring.h"

#include <algorithm>
#include <cstring>

#include "worker/backend/cuda/cuda_status.h"

namespace polyreme::cuda {
namespace {

constexpr int64_t kAlignment = 16;

int64_t RoundUp(int64_t value) {
  return (value + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

absl::StatusOr<std::unique_ptr<UploadRing>> UploadRing::Make(cudaStream_t stream) {
  auto ring = std::unique_ptr<UploadRing>(new UploadRing(stream));
  constexpr size_t kBytes = kSegments * static_cast<size_t>(kSegmentBytes);
  RETURN_IF_CUDA_ERROR(
      cudaHostAlloc(reinterpret_cast<void**>(&ring->host_), kBytes, cudaHostAllocDefault),
      "pinned memory for uploads");
  RETURN_IF_CUDA_ERROR(cudaMalloc(reinterpret_cast<void**>(&ring->device_), kBytes),
                       "device memory for uploads");
  for (cudaEvent_t& event : ring->copied_) {
    RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&event, cudaEventDisableTiming),
                         "an event for uploads");
  }
  return ring;
}

UploadRing::~UploadRing() {
  for (const cudaEvent_t event : copied_) {
    if (event != nullptr) (void)cudaEventDestroy(event);
  }
  if (device_ != nullptr) (void)cudaFree(device_);
  if (host_ != nullptr) (void)cudaFreeHost(host_);
}

bool UploadRing::SegmentIsFree() {
  if (!used_[segment_]) return true;
  const cudaError_t copied = cudaEventQuery(copied_[segment_]);
  if (copied == cudaErrorNotReady) (void)cudaGetLastError();  // no error, but kept as if it were
  if (copied == cudaSuccess) used_[segment_] = false;
  return copied == cudaSuccess;
}

bool UploadRing::OverlapsPending(const void* to, int64_t bytes) const {
  const auto begin = reinterpret_cast<uintptr_t>(to);
  const uintptr_t end = begin + static_cast<uintptr_t>(bytes);
  return std::any_of(pending_.begin(), pending_.end(), [&](const UploadEntry& piece) {
    const auto first = reinterpret_cast<uintptr_t>(piece.to);
    return begin < first + piece.bytes && first < end;
  });
}

bool UploadRing::Add(const void* from, int64_t bytes, void* to) {
  CHECK(bytes > 0);
  const int64_t offset =
      RoundUp(data_bytes_) + static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % kAlignment);
  if (bytes > kMaxPieceBytes || offset + bytes > kDataBytes || pending_.size() == kMaxPieces ||
      OverlapsPending(to, bytes)) {
    return false;
  }
  if (pending_.empty() && !SegmentIsFree()) return false;
  std::memcpy(HostSegment() + offset, from, static_cast<size_t>(bytes));
  pending_.push_back({to, static_cast<uint32_t>(offset), static_cast<uint32_t>(bytes)});
  data_bytes_ = offset + bytes;
  max_piece_ = std::max(max_piece_, bytes);
  return true;
}

cudaError_t UploadRing::Flush() {
  if (pending_.empty()) return cudaSuccess;
  const int64_t table = RoundUp(data_bytes_);
  const size_t table_bytes = pending_.size() * sizeof(UploadEntry);
  std::memcpy(HostSegment() + table, pending_.data(), table_bytes);
  cudaError_t error =
      cudaMemcpyAsync(DeviceSegment(), HostSegment(), static_cast<size_t>(table) + table_bytes,
                      cudaMemcpyHostToDevice, stream_);
  if (error == cudaSuccess) error = cudaEventRecord(copied_[segment_], stream_);
  if (error == cudaSuccess) {
    error = ScatterUploads(stream_, DeviceSegment(),
                           reinterpret_cast<const UploadEntry*>(DeviceSegment() + table),
                           static_cast<int>(pending_.size()), max_piece_);
  }
  used_[segment_] = true;
  segment_ = (segment_ + 1) % kSegments;
  data_bytes_ = max_piece_ = 0;
  pending_.clear();
  return error;
}

}  // namespace polyreme::cuda
