// Host memory, a mapped file above all, to the GPU: several threads, each with two pinned buffers
// and a stream of its own, so that gathering, transfer and conversion overlap.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "parallel/base/status.h"
#include "worker/backend/cuda/element.h"

namespace polyreme::cuda {

// Rows in host memory that become rows one after another on the device.
struct UploadBlock {
  const std::byte* data = nullptr;
  int64_t rows = 0;
  int64_t row_bytes = 0;
  int64_t stride_bytes = 0;  // from one row to the next, in host memory
  std::byte* to = nullptr;   // on the device, elements of to_type
};

struct UploadRequest {
  std::vector<UploadBlock> blocks;
  Element from_type = Element::kBF16;
  Element to_type = Element::kBF16;
  unsigned long long* overflows = nullptr;  // as ConvertWeights has it
};

class StagedUpload {
 public:
  // Of each of a thread's two. On an H200's host, 15 GB from the page cache through 16 threads:
  // 8 MiB 31 GB/s, 2 MiB 43, 1 MiB 41, half a MiB 29; small ones stay in the cores' caches.
  static constexpr int64_t kBufferBytes = int64_t{2} << 20;

  // Starts the threads; each takes its memory with its first piece.
  StagedUpload(int device_index, int num_threads);
  ~StagedUpload();
  StagedUpload(const StagedUpload&) = delete;
  StagedUpload& operator=(const StagedUpload&) = delete;

  // Returns when all of it is on the device. The first error of any thread: ResourceExhausted names
  // the memory that could not be had. One caller at a time.
  absl::Status Run(const UploadRequest& request);

 private:
  // Bytes [begin, end) of a block, its rows counted without what lies between them.
  struct Piece {
    const UploadBlock* block = nullptr;
    int64_t begin = 0;
    int64_t end = 0;
  };
  class Lane;

  void Work();
  absl::Status SendPieces(Lane& lane);
  void CutIntoPieces(const UploadRequest& request);

  const int device_index_;
  const int num_threads_;
  // Of the request being run; written while no thread works.
  const UploadRequest* request_ = nullptr;
  std::vector<Piece> pieces_;
  std::atomic<size_t> next_piece_{0};

  std::mutex mutex_;  // of all below
  std::condition_variable changed_;
  int64_t num_requests_ = 0;
  int num_working_ = 0;
  bool closing_ = false;
  absl::Status first_error_;
  std::vector<std::thread> threads_;
};

}  // namespace polyreme::cuda
