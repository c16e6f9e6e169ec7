#include "worker/backend/cuda/cuda_packer.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "worker/backend/cuda/cuda_status.h"
#include "worker/backend/cuda/staged_upload.h"
#include "worker/backend/cuda/weight_kernels.h"
#include "worker/backend/cuda/workspace.h"

namespace polyreme::cuda {
namespace {

using weights::Weight;
using weights::WeightSource;

// On a host whose link takes 55 GB/s four reach 28, and 8 to 16 all of 43 to 45.
constexpr int kMaxUploadThreads = 12;

absl::StatusOr<Element> ElementOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return Element::kF32;
    case DType::kF16:
      return Element::kF16;
    case DType::kBF16:
      return Element::kBF16;
    default:
      return InvalidArgument("expected a weight of float32, float16 or bfloat16, got {}",
                             NameOf(dtype));
  }
}

class CudaPacker final : public weights::WeightPacker {
 public:
  using Allocate = std::function<absl::StatusOr<Buffer>(int64_t)>;

  CudaPacker(int device_index, DType dtype, Element type, Allocate allocate)
      : device_index_(device_index), dtype_(dtype), type_(type), allocate_(std::move(allocate)) {}
  CudaPacker(const CudaPacker&) = delete;
  CudaPacker& operator=(const CudaPacker&) = delete;
  ~CudaPacker() override {
    if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  }

  absl::Status Open();
  absl::StatusOr<Weight> Pack(const WeightSource& source) override;
  absl::StatusOr<Buffer> PackVector(absl::Span<const float> values) override;
  void ReleaseStaging() override { upload_.reset(); }

 private:
  // Fills the weight's rows, on stream_ and, for bytes of the host, through upload_.
  absl::Status Fill(const WeightSource& source, Element from, std::byte* to);
  absl::Status Make(const WeightSource::RowBlock& block, Element stored, int64_t cols,
                    std::byte* to);
  absl::Status Upload(const UploadRequest& request);
  absl::Status CheckOverflows(Element from);

  const int device_index_;
  const DType dtype_;
  const Element type_;
  const Allocate allocate_;
  cudaStream_t stream_ = nullptr;
  Buffer overflows_;  // one unsigned long long
  std::unique_ptr<StagedUpload> upload_;
};

absl::Status CudaPacker::Open() {
  RETURN_IF_CUDA_ERROR(cudaSetDevice(device_index_), "choosing the GPU");
  RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                       "a stream for weights");
  ASSIGN_OR_RETURN(overflows_, allocate_(sizeof(unsigned long long)));
  return absl::OkStatus();
}

absl::StatusOr<Weight> CudaPacker::Pack(const WeightSource& source) {
  ASSIGN_OR_RETURN(const Element from, ElementOf(source.dtype));
  CHECK(source.cols > 0, "a weight of {} columns", source.cols);
  RETURN_IF_CUDA_ERROR(cudaSetDevice(device_index_), "choosing the GPU");
  Weight weight;
  for (const WeightSource::RowBlock& block : source.blocks) weight.rows += block.rows;
  weight.cols = source.cols;
  weight.dtype = dtype_;
  weight.segment_ends = source.segment_ends;
  if (weight.segment_ends.empty()) weight.segment_ends = {source.cols};
  ASSIGN_OR_RETURN(weight.bytes, allocate_(PackedWeightBytes(type_, weight.rows, weight.cols)));
  const absl::Status filled = Fill(source, from, static_cast<std::byte*>(weight.bytes.data()));
  // Nothing may still write to the weight when an error frees it.
  const absl::Status finished = CudaStatus(cudaStreamSynchronize(stream_), "filling a weight");
  RETURN_IF_ERROR(filled);
  RETURN_IF_ERROR(finished);
  return weight;
}

absl::Status CudaPacker::Fill(const WeightSource& source, Element from, std::byte* to) {
  auto* const overflows = static_cast<unsigned long long*>(overflows_.data());
  UploadRequest request{.blocks = {}, .from_type = from, .to_type = type_, .overflows = overflows};
  for (const WeightSource::RowBlock& block : source.blocks) {
    if (block.data != nullptr) {
      request.blocks.push_back({.data = block.data,
                                .rows = block.rows,
                                .row_bytes = source.cols * SizeOf(from),
                                .stride_bytes = block.row_stride_bytes,
                                .to = to});
    } else {
      RETURN_IF_ERROR(Make(block, from, source.cols, to));
    }
    to += block.rows * source.cols * SizeOf(type_);
  }
  if (request.blocks.empty()) return absl::OkStatus();
  const bool may_overflow = type_ == Element::kF16 && from != type_;
  if (may_overflow) {
    RETURN_IF_CUDA_ERROR(cudaMemsetAsync(overflows, 0, sizeof *overflows, stream_),
                         "clearing a counter");
    RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_), "clearing a counter");
  }
  RETURN_IF_ERROR(Upload(request));
  return may_overflow ? CheckOverflows(from) : absl::OkStatus();
}

// Rows of zeros, or of a dummy tensor.
absl::Status CudaPacker::Make(const WeightSource::RowBlock& block, Element stored, int64_t cols,
                              std::byte* to) {
  if (!block.generated.has_value()) {
    const int64_t bytes = block.rows * cols * SizeOf(type_);
    return CudaStatus(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), stream_),
                      "clearing rows of a weight");
  }
  const WeightSource::Generated& from = *block.generated;
  const DummyWindow window{.values = from.values,
                           .first_row = from.first_row,
                           .first_col = from.first_col,
                           .full_cols = from.full_cols};
  return CudaStatus(MakeDummyWeights(stream_, window, stored, block.rows, cols, to, type_),
                    "making dummy weights");
}

absl::Status CudaPacker::Upload(const UploadRequest& request) {
  if (upload_ == nullptr) {
    const int processors = static_cast<int>(std::thread::hardware_concurrency());
    upload_ =
        std::make_unique<StagedUpload>(device_index_, std::clamp(processors, 1, kMaxUploadThreads));
  }
  return upload_->Run(request);
}

absl::Status CudaPacker::CheckOverflows(Element from) {
  unsigned long long count = 0;
  RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(&count, overflows_.data(), sizeof count, cudaMemcpyDeviceToHost, stream_),
      "reading a counter");
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_), "reading a counter");
  if (count == 0) return absl::OkStatus();
  return InvalidArgument("{} values do not fit float16 (the weight is stored in {}): use bfloat16",
                         count, from == Element::kF32 ? "float32" : "bfloat16");
}

absl::StatusOr<Buffer> CudaPacker::PackVector(absl::Span<const float> values) {
  RETURN_IF_CUDA_ERROR(cudaSetDevice(device_index_), "choosing the GPU");
  const size_t bytes = values.size() * sizeof(float);
  ASSIGN_OR_RETURN(Buffer buffer, allocate_(static_cast<int64_t>(bytes)));
  if (bytes == 0) return buffer;
  const absl::Status sent = CudaStatus(
      cudaMemcpyAsync(buffer.data(), values.data(), bytes, cudaMemcpyHostToDevice, stream_),
      "uploading a vector");
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_), "uploading a vector");
  RETURN_IF_ERROR(sent);
  return buffer;
}

}  // namespace

absl::StatusOr<std::unique_ptr<weights::WeightPacker>> MakeCudaPacker(
    int device_index, DType dtype, std::function<absl::StatusOr<Buffer>(int64_t)> allocate) {
  ASSIGN_OR_RETURN(const Element type, ElementOf(dtype));
  auto packer = std::make_unique<CudaPacker>(device_index, dtype, type, std::move(allocate));
  RETURN_IF_ERROR(packer->Open());
  return packer;
}

}  // namespace polyreme::cuda
