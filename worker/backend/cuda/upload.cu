#include "worker/backend/cuda/upload.h"

namespace polyreme::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kBytesPerBlock = int64_t{kThreads} * 16 * 4;

// Block (e, part) copies its part of piece e: bytes up to the first 16-byte boundary and behind the
// last one singly, the words between by 16.
__global__ void __launch_bounds__(kThreads)
    ScatterKernel(const unsigned char* staged, const UploadEntry* entries) {
  const UploadEntry entry = entries[blockIdx.x];
  const unsigned char* from = staged + entry.offset;
  auto* to = static_cast<unsigned char*>(entry.to);
  const uint32_t misaligned = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(to) & 15u);
  uint32_t head = misaligned == 0 ? 0 : 16 - misaligned;
  if (head > entry.bytes) head = entry.bytes;
  const uint32_t words = (entry.bytes - head) / 16;
  const uint32_t tail = head + words * 16;
  const auto* from_words = reinterpret_cast<const uint4*>(from + head);
  auto* to_words = reinterpret_cast<uint4*>(to + head);
  for (uint32_t i = blockIdx.y * kThreads + threadIdx.x; i < words; i += gridDim.y * kThreads) {
    to_words[i] = from_words[i];
  }
  if (blockIdx.y != 0) return;
  if (threadIdx.x < head) to[threadIdx.x] = from[threadIdx.x];
  if (threadIdx.x < entry.bytes - tail) to[tail + threadIdx.x] = from[tail + threadIdx.x];
}

}  // namespace

cudaError_t ScatterUploads(cudaStream_t stream, const void* staged, const UploadEntry* entries,
                           int num_entries, int64_t max_bytes) {
  const dim3 grid(static_cast<unsigned>(num_entries),
                  static_cast<unsigned>((max_bytes + kBytesPerBlock - 1) / kBytesPerBlock));
  ScatterKernel<<<grid, kThreads, 0, stream>>>(static_cast<const unsigned char*>(staged), entries);
  return cudaGetLastError();
}

}  // namespace polyreme::cuda
