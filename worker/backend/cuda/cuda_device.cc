#include "worker/backend/cuda/cuda_device.h"

#include <fmt/format.h>

#include <cstring>
#include <string_view>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "worker/backend/cuda/cuda_lane.h"
#include "worker/backend/cuda/cuda_status.h"
#include "worker/backend/cuda/describe.h"

namespace polyreme::cuda {
namespace {

absl::Status CheckIndex(int32_t index) {
  ASSIGN_OR_RETURN(const int count, CountGpus());
  if (index >= 0 && index < count) return absl::OkStatus();
  return FailedPrecondition("expected a GPU of 0 to {}, got {}: {} are visible to this process",
                            count - 1, index, count);
}

// Machine code for compute capability M.n serves M.n and later ones of the same M.
absl::Status CheckArchitecture(int32_t index, const cudaDeviceProp& gpu) {
  for (const absl::string_view built : absl::StrSplit(POLYREME_CUDA_ARCHS, ',')) {
    int arch = 0;
    CHECK(absl::SimpleAtoi(built, &arch));
    if (arch / 10 == gpu.major && arch % 10 <= gpu.minor) return absl::OkStatus();
  }
  return FailedPrecondition(
      "GPU {} ({}) has compute capability {}.{}, and this build has code for {} only: build with "
      "POLYREME_CUDA_ARCHS={}{}",
      index, gpu.name, gpu.major, gpu.minor, POLYREME_CUDA_ARCHS, gpu.major, gpu.minor);
}

CudaLane& LaneOf(Lane& lane) {
  return static_cast<CudaLane&>(lane);
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Make(const Options& options) {
  RETURN_IF_ERROR(CheckIndex(options.index));
  cudaDeviceProp properties{};
  RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, options.index),
                       fmt::format("GPU {}", options.index));
  RETURN_IF_ERROR(CheckArchitecture(options.index, properties));
  auto device = std::unique_ptr<CudaDevice>(new CudaDevice(options, properties));
  RETURN_IF_CUDA_ERROR(cudaSetDevice(options.index), fmt::format("GPU {}", options.index));
  RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&device->copy_stream_, cudaStreamNonBlocking),
                       fmt::format("GPU {}, a stream", options.index));
  return device;
}

CudaDevice::~CudaDevice() {
  if (copy_stream_ != nullptr) (void)cudaStreamDestroy(copy_stream_);
}

absl::StatusOr<Buffer> CudaDevice::Allocate(int64_t bytes) {
  CHECK(bytes >= 0, "a buffer of {} bytes", bytes);
  if (bytes == 0) return Buffer();
  RETURN_IF_CUDA_ERROR(cudaSetDevice(index()), "allocating");
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return ResourceExhausted("GPU {}: expected {} bytes of memory, {} are free", index(), bytes,
                             FreeBytes());
  }
  RETURN_IF_CUDA_ERROR(error, fmt::format("GPU {}, allocating {} bytes", index(), bytes));
  Buffer buffer(data, bytes, [device = index()](void* memory) {
    (void)cudaSetDevice(device);
    (void)cudaFree(memory);
  });
  RETURN_IF_CUDA_ERROR(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), copy_stream_),
                       "zeroing memory");
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(copy_stream_), "zeroing memory");
  return buffer;
}

absl::StatusOr<Buffer> CudaDevice::AllocateHost(int64_t bytes) {
  CHECK(bytes >= 0, "a buffer of {} bytes", bytes);
  if (bytes == 0) return Buffer();
  RETURN_IF_CUDA_ERROR(cudaSetDevice(index()), "allocating");
  void* data = nullptr;
  const cudaError_t error = cudaHostAlloc(&data, static_cast<size_t>(bytes), cudaHostAllocPortable);
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return ResourceExhausted("expected {} bytes of pinned host memory; is `ulimit -l` too low?",
                             bytes);
  }
  RETURN_IF_CUDA_ERROR(error, fmt::format("pinning {} bytes of host memory", bytes));
  std::memset(data, 0, static_cast<size_t>(bytes));
  return Buffer(data, bytes, [](void* memory) { (void)cudaFreeHost(memory); });
}

absl::StatusOr<std::unique_ptr<Lane>> CudaDevice::MakeLane(int64_t scratch_bytes) {
  ASSIGN_OR_RETURN(Buffer arena, arena_allocator_ && scratch_bytes > 0
                                     ? arena_allocator_(scratch_bytes)
                                     : Allocate(scratch_bytes));
  ASSIGN_OR_RETURN(std::unique_ptr<Lane> lane,
                   CudaLane::Make(index(), std::move(arena), options_.record_steps));
  return lane;
}

// The run time's own blocking copy may return before the bytes have arrived, and lanes' streams do
// not wait for it.
absl::Status CudaDevice::BlockingCopy(const void* from, int64_t bytes, void* to, const char* what) {
  if (bytes == 0) return absl::OkStatus();
  RETURN_IF_CUDA_ERROR(cudaSetDevice(index()), what);
  RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, copy_stream_), what);
  return CudaStatus(cudaStreamSynchronize(copy_stream_), what);
}

absl::Status CudaDevice::CopyFromHost(const void* from, int64_t bytes, void* to) {
  return BlockingCopy(from, bytes, to, "copying to the GPU");
}

absl::Status CudaDevice::CopyToHost(const void* from, int64_t bytes, void* to) {
  return BlockingCopy(from, bytes, to, "copying from the GPU");
}

void CudaDevice::Upload(Lane& lane, const void* from, int64_t bytes, void* to) {
  LaneOf(lane).Upload(from, bytes, to);
}

void CudaDevice::Download(Lane& lane, const void* from, int64_t bytes, void* to) {
  LaneOf(lane).Download(from, bytes, to);
}

void CudaDevice::Copy(Lane& lane, const void* from, int64_t bytes, void* to) {
  LaneOf(lane).Copy(from, bytes, to);
}

int64_t CudaDevice::FreeBytes() const {
  size_t free = 0;
  size_t total = 0;
  if (cudaSetDevice(index()) != cudaSuccess || cudaMemGetInfo(&free, &total) != cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
  return static_cast<int64_t>(free);
}

int64_t CudaDevice::TotalBytes() const {
  return static_cast<int64_t>(properties_.totalGlobalMem);
}

std::vector<int32_t> CudaDevice::ReplayRows(int32_t max_rows) const {
  std::vector<int32_t> rows;
  if (!options_.record_steps || max_rows <= 0) return rows;
  for (int32_t count = 1; count < max_rows; count += count < 8 ? count : count < 64 ? 8 : 16) {
    rows.push_back(count);
  }
  rows.push_back(max_rows);
  return rows;
}

}  // namespace polyreme::cuda
