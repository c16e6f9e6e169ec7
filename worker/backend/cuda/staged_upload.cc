#include "worker/backend/cuda/staged_upload.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "worker/backend/cuda/cuda_status.h"
#include "worker/backend/cuda/weight_kernels.h"

namespace polyreme::cuda {
namespace {

constexpr int64_t kMinPieceBytes = int64_t{1} << 20;
constexpr int64_t kPieceAlignment = 4096;
constexpr uintptr_t kPageBytes = 4096;

// Page tables filled in one call cost a fraction of a fault per page. Only a hint: what it cannot
// do, the copy's own page faults do.
void Advise(const std::byte* begin, const std::byte* end, int advice) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin) / kPageBytes * kPageBytes;
  const uintptr_t last = reinterpret_cast<uintptr_t>(end);
  (void)::madvise(reinterpret_cast<void*>(first), last - first, advice);
}

void AdviseRows(const UploadBlock& block, int64_t begin, int64_t end, int advice) {
  // Narrow columns of wide rows: most pages between them are not wanted.
  if (block.row_bytes * 2 < block.stride_bytes) return;
  const int64_t last = end - 1;
  Advise(block.data + begin / block.row_bytes * block.stride_bytes + begin % block.row_bytes,
         block.data + last / block.row_bytes * block.stride_bytes + last % block.row_bytes + 1,
         advice);
}

// Bytes [begin, end) of the block's rows, gathered.
void Gather(const UploadBlock& block, int64_t begin, int64_t end, std::byte* to) {
  if (block.row_bytes == block.stride_bytes) {
    std::memcpy(to, block.data + begin, static_cast<size_t>(end - begin));
    return;
  }
  while (begin < end) {
    const int64_t row = begin / block.row_bytes;
    const int64_t col = begin % block.row_bytes;
    const int64_t count = std::min(block.row_bytes - col, end - begin);
    std::memcpy(to, block.data + row * block.stride_bytes + col, static_cast<size_t>(count));
    to += count;
    begin += count;
  }
}

}  // namespace

// What one thread owns. The two halves take turns: while one is on its way, the other is filled.
class StagedUpload::Lane {
 public:
  Lane() = default;
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;
  ~Lane() {
    if (stream_ != nullptr) (void)cudaStreamSynchronize(stream_);
    for (Half& half : halves_) {
      if (half.pinned != nullptr) (void)cudaFreeHost(half.pinned);
      if (half.staged != nullptr) (void)cudaFree(half.staged);
      if (half.sent != nullptr) (void)cudaEventDestroy(half.sent);
    }
    if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  }

  absl::Status Send(const Piece& piece, const UploadRequest& request) {
    RETURN_IF_ERROR(Prepare(request.from_type != request.to_type));
    Half& half = halves_[next_half_];
    next_half_ ^= 1;
    RETURN_IF_CUDA_ERROR(cudaEventSynchronize(half.sent), "waiting for an upload");
    AdviseRows(*piece.block, piece.begin, piece.end, MADV_POPULATE_READ);
    Gather(*piece.block, piece.begin, piece.end, half.pinned);
    const int64_t bytes = piece.end - piece.begin;
    const int64_t first = piece.begin / SizeOf(request.from_type);
    std::byte* const to = piece.block->to + first * SizeOf(request.to_type);
    const bool converts = request.from_type != request.to_type;
    RETURN_IF_CUDA_ERROR(
        cudaMemcpyAsync(converts ? half.staged : to, half.pinned, static_cast<size_t>(bytes),
                        cudaMemcpyHostToDevice, stream_),
        "uploading weights");
    if (converts) {
      RETURN_IF_CUDA_ERROR(
          ConvertWeights(stream_, half.staged, request.from_type, bytes / SizeOf(request.from_type),
                         to, request.to_type, request.overflows),
          "converting weights");
    }
    RETURN_IF_CUDA_ERROR(cudaEventRecord(half.sent, stream_), "uploading weights");
    return absl::OkStatus();
  }

  absl::Status Finish() {
    if (stream_ == nullptr) return absl::OkStatus();
    return CudaStatus(cudaStreamSynchronize(stream_), "uploading weights");
  }

 private:
  struct Half {
    std::byte* pinned = nullptr;
    std::byte* staged = nullptr;  // on the device; where bytes are converted
    cudaEvent_t sent = nullptr;   // the last use of this half is over
  };

  absl::Status Prepare(bool converts) {
    if (stream_ == nullptr) {
      RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                           "a stream for uploads");
    }
    for (Half& half : halves_) {
      if (half.sent == nullptr) {
        RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&half.sent, cudaEventDisableTiming),
                             "an event for uploads");
      }
      if (half.pinned == nullptr) {
        void* memory = nullptr;
        RETURN_IF_CUDA_ERROR(cudaHostAlloc(&memory, kBufferBytes, cudaHostAllocDefault),
                             "2 MiB of pinned host memory for uploads");
        half.pinned = static_cast<std::byte*>(memory);
      }
      if (converts && half.staged == nullptr) {
        void* memory = nullptr;
        RETURN_IF_CUDA_ERROR(cudaMalloc(&memory, kBufferBytes),
                             "2 MiB of device memory for converting weights");
        half.staged = static_cast<std::byte*>(memory);
      }
    }
    return absl::OkStatus();
  }

  cudaStream_t stream_ = nullptr;
  std::array<Half, 2> halves_;
  size_t next_half_ = 0;
};

StagedUpload::StagedUpload(int device_index, int num_threads)
    : device_index_(device_index), num_threads_(num_threads) {
  for (int i = 0; i < num_threads_; ++i) threads_.emplace_back([this] { Work(); });
}

StagedUpload::~StagedUpload() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

absl::Status StagedUpload::Run(const UploadRequest& request) {
  std::unique_lock lock(mutex_);
  CutIntoPieces(request);
  request_ = &request;
  first_error_ = absl::OkStatus();
  num_working_ = num_threads_;
  ++num_requests_;
  changed_.notify_all();
  changed_.wait(lock, [this] { return num_working_ == 0; });
  request_ = nullptr;
  return first_error_;
}

// Small weights are cut finer, so that every thread has a share and the last piece is no long tail.
void StagedUpload::CutIntoPieces(const UploadRequest& request) {
  int64_t total = 0;
  for (const UploadBlock& block : request.blocks) total += block.rows * block.row_bytes;
  const int64_t share = std::clamp(total / (4 * num_threads_), kMinPieceBytes, kBufferBytes);
  const int64_t step = share / kPieceAlignment * kPieceAlignment;
  pieces_.clear();
  next_piece_ = 0;
  for (const UploadBlock& block : request.blocks) {
    const int64_t bytes = block.rows * block.row_bytes;
    for (int64_t begin = 0; begin < bytes; begin += step) {
      pieces_.push_back({&block, begin, std::min(bytes, begin + step)});
    }
  }
}

void StagedUpload::Work() {
  const absl::Status device = CudaStatus(cudaSetDevice(device_index_), "choosing the GPU");
  Lane lane;
  int64_t seen = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return closing_ || num_requests_ != seen; });
    if (closing_) return;
    seen = num_requests_;
    lock.unlock();
    absl::Status status = device;
    if (status.ok()) status = SendPieces(lane);
    if (!status.ok()) next_piece_ = pieces_.size();
    // Not even after an error may a transfer still read what the next request fills.
    const absl::Status finished = lane.Finish();
    if (status.ok()) status = finished;
    lock.lock();
    if (first_error_.ok()) first_error_ = status;
    if (--num_working_ == 0) changed_.notify_all();
  }
}

absl::Status StagedUpload::SendPieces(Lane& lane) {
  for (;;) {
    const size_t next = next_piece_.fetch_add(1);
    if (next >= pieces_.size()) return absl::OkStatus();
    const size_t ahead = next + static_cast<size_t>(num_threads_);
    if (ahead < pieces_.size()) {
      const Piece& later = pieces_[ahead];
      AdviseRows(*later.block, later.begin, later.end, MADV_WILLNEED);
    }
    RETURN_IF_ERROR(lane.Send(pieces_[next], *request_));
  }
}

}  // namespace polyreme::cuda
