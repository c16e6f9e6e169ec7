#include "worker/backend/cuda/measure.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/functional/function_ref.h"
#include "parallel/base/clock.h"
#include "parallel/base/ids.h"
#include "parallel/comm/nccl_communicator.h"
#include "worker/backend/cuda/cuda_status.h"
#include "worker/backend/cuda/gemv.h"
#include "worker/backend/cuda/probe.h"
#include "worker/backend/cuda/products.h"

namespace polyreme::cuda {
namespace {

constexpr int64_t kMostBytes = int64_t{8} << 30;
constexpr int kBuffers = 4;
constexpr int64_t kUploadBytes = int64_t{256} << 20;
constexpr int kRounds = 5;
constexpr int64_t kProductSize = 8192;  // T, N and K
constexpr int kProducts = 10;           // of one round
constexpr int64_t kArenaBytes = int64_t{16} << 20;
constexpr absl::Duration kMeetPatience = absl::Seconds(30);

struct Deleter {
  void operator()(cudaStream_t stream) const { (void)cudaStreamDestroy(stream); }
  void operator()(cudaEvent_t event) const { (void)cudaEventDestroy(event); }
};
using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, Deleter>;
using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, Deleter>;

absl::StatusOr<Buffer> AllocateDevice(int64_t bytes) {
  void* data = nullptr;
  RETURN_IF_CUDA_ERROR(cudaMalloc(&data, static_cast<size_t>(bytes)),
                       fmt::format("taking {} bytes to measure with", bytes));
  return Buffer(data, bytes, [](void* gone) { (void)cudaFree(gone); });
}

absl::StatusOr<Buffer> AllocatePinned(int64_t bytes) {
  void* data = nullptr;
  RETURN_IF_CUDA_ERROR(cudaMallocHost(&data, static_cast<size_t>(bytes)),
                       fmt::format("taking {} bytes of pinned memory", bytes));
  return Buffer(data, bytes, [](void* gone) { (void)cudaFreeHost(gone); });
}

// A stream on the current GPU and a clock on it.
class Bench {
 public:
  static absl::StatusOr<Bench> Make() {
    Bench bench;
    cudaStream_t stream = nullptr;
    RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
    bench.stream_.reset(stream);
    for (Event* event : {&bench.begin_, &bench.end_}) {
      cudaEvent_t made = nullptr;
      RETURN_IF_CUDA_ERROR(cudaEventCreate(&made), "an event");
      event->reset(made);
    }
    return bench;
  }
  cudaStream_t stream() const { return stream_.get(); }

  // Seconds of `body`'s work, the fastest of kRounds after one that does not count.
  absl::StatusOr<double> Time(absl::FunctionRef<absl::Status()> body) {
    double best = 0;
    for (int round = 0; round <= kRounds; ++round) {
      RETURN_IF_CUDA_ERROR(cudaEventRecord(begin_.get(), stream()), "cudaEventRecord");
      RETURN_IF_ERROR(body());
      RETURN_IF_CUDA_ERROR(cudaEventRecord(end_.get(), stream()), "cudaEventRecord");
      RETURN_IF_CUDA_ERROR(cudaEventSynchronize(end_.get()), "measuring");
      float milliseconds = 0;
      RETURN_IF_CUDA_ERROR(cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get()),
                           "cudaEventElapsedTime");
      const double seconds = static_cast<double>(milliseconds) * 1e-3;
      if (round == 1 || (round > 1 && seconds < best)) best = seconds;
    }
    return best;
  }

 private:
  Bench() = default;
  Stream stream_;
  Event begin_;
  Event end_;
};

absl::Status MeasureMemory(Bench& bench, int multiprocessors, GpuMeasurement& found) {
  size_t free = 0, total = 0;
  RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  constexpr int64_t kGrain = 1 << 20;
  const int64_t each =
      std::min(kMostBytes, static_cast<int64_t>(free) / 4) / kBuffers / kGrain * kGrain;
  if (each < 64 * kGrain) {
    return ResourceExhausted("GPU {}: {} of {} bytes are free, too few to measure with",
                             found.index, free, total);
  }
  std::vector<Buffer> buffers;
  for (int i = 0; i < kBuffers; ++i) {
    ASSIGN_OR_RETURN(Buffer buffer, AllocateDevice(each));
    RETURN_IF_CUDA_ERROR(FillForTiming(bench.stream(), Element::kF32, each / 4, buffer.data()),
                         "filling");
    buffers.push_back(std::move(buffer));
  }
  ASSIGN_OR_RETURN(const Buffer sink, AllocateDevice(sizeof(uint32_t)));
  ASSIGN_OR_RETURN(const double reading, bench.Time([&] {
    for (const Buffer& buffer : buffers) {
      RETURN_IF_CUDA_ERROR(ReadMemory(bench.stream(), buffer.data(), each, multiprocessors,
                                      static_cast<uint32_t*>(sink.data())),
                           "reading");
    }
    return absl::OkStatus();
  }));
  found.read_bytes_per_second = static_cast<double>(kBuffers * each) / reading;
  ASSIGN_OR_RETURN(const double copying, bench.Time([&] {
    for (int i = 0; i + 1 < kBuffers; i += 2) {
      RETURN_IF_CUDA_ERROR(
          cudaMemcpyAsync(buffers[static_cast<size_t>(i)].data(),
                          buffers[static_cast<size_t>(i) + 1].data(), static_cast<size_t>(each),
                          cudaMemcpyDeviceToDevice, bench.stream()),
          "copying");
    }
    return absl::OkStatus();
  }));
  found.copy_bytes_per_second = static_cast<double>(kBuffers * each) / copying;
  return absl::OkStatus();
}

absl::Status MeasureUpload(Bench& bench, GpuMeasurement& found) {
  ASSIGN_OR_RETURN(const Buffer from, AllocatePinned(kUploadBytes));
  ASSIGN_OR_RETURN(const Buffer to, AllocateDevice(kUploadBytes));
  ASSIGN_OR_RETURN(const double seconds, bench.Time([&] {
    return CudaStatus(cudaMemcpyAsync(to.data(), from.data(), static_cast<size_t>(kUploadBytes),
                                      cudaMemcpyHostToDevice, bench.stream()),
                      "uploading");
  }));
  found.upload_bytes_per_second = static_cast<double>(kUploadBytes) / seconds;
  return absl::OkStatus();
}

absl::Status MeasureProducts(Bench& bench, int compute_capability, GpuMeasurement& found) {
  const Element type = compute_capability >= 80 ? Element::kBF16 : Element::kF16;
  ASSIGN_OR_RETURN(const std::unique_ptr<Products> products, Products::Make(type, {}));
  constexpr int64_t kElements = kProductSize * kProductSize;
  ASSIGN_OR_RETURN(const Buffer x, AllocateDevice(kElements * SizeOf(type)));
  ASSIGN_OR_RETURN(const Buffer w, AllocateDevice(kElements * SizeOf(type)));
  ASSIGN_OR_RETURN(const Buffer y, AllocateDevice(kElements * SizeOf(type)));
  for (const Buffer* operand : {&x, &w}) {
    RETURN_IF_CUDA_ERROR(FillForTiming(bench.stream(), type, kElements, operand->data()),
                         "filling");
  }
  ASSIGN_OR_RETURN(const double seconds, bench.Time([&] {
    for (int i = 0; i < kProducts; ++i) {
      RETURN_IF_ERROR(products->Run(bench.stream(), x.data(), kProductSize, w.data(), kProductSize,
                                    kProductSize, y.data(), type));
    }
    return absl::OkStatus();
  }));
  found.gemm_flops = 2.0 * static_cast<double>(kElements) * kProductSize * kProducts / seconds;
  return absl::OkStatus();
}

absl::Status CheckCount(int32_t wanted, const char* what) {
  int count = 0;
  RETURN_IF_CUDA_ERROR(cudaGetDeviceCount(&count), "counting GPUs");
  if (wanted <= count) return absl::OkStatus();
  return InvalidArgument("{}: expected at most {} GPUs, got {}", what, count, wanted);
}

// One rank's part of the measurement.
absl::StatusOr<std::vector<comm::AllReduceTiming>> TimeRank(int32_t rank, int32_t num_gpus,
                                                            comm::NcclFactory& factory,
                                                            const std::string& id) {
  comm::GroupSpec spec;
  spec.name = "GPUs that are measured";
  spec.rank = rank;
  for (int32_t i = 0; i < num_gpus; ++i) spec.members.push_back(Rank{i});
  spec.deadline = MonotonicNow() + kMeetPatience;
  spec.patience = kMeetPatience;
  ASSIGN_OR_RETURN(const std::unique_ptr<comm::Communicator> made, factory.Make(spec, id));
  ASSIGN_OR_RETURN(const Buffer arena, factory.AllocateArena(kArenaBytes));
  RETURN_IF_ERROR(made->UseArena({arena.data(), DType::kU8, Shape{kArenaBytes}}));
  const auto* const communicator = dynamic_cast<const comm::NcclCommunicator*>(made.get());
  CHECK(communicator != nullptr, "a group of {} goes through NCCL", num_gpus);
  const absl::Span<const comm::AllReduceTiming> timings = communicator->timings();
  return std::vector<comm::AllReduceTiming>(timings.begin(), timings.end());
}

}  // namespace

absl::StatusOr<GpuMeasurement> MeasureGpu(int32_t index) {
  if (index < 0) return InvalidArgument("expected a GPU, got {}", index);
  RETURN_IF_ERROR(CheckCount(index + 1, "measuring"));
  RETURN_IF_CUDA_ERROR(cudaSetDevice(index), "cudaSetDevice");
  cudaDeviceProp properties;
  RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  GpuMeasurement found;
  found.index = index;
  ASSIGN_OR_RETURN(Bench bench, Bench::Make());
  RETURN_IF_ERROR(MeasureMemory(bench, properties.multiProcessorCount, found));
  RETURN_IF_ERROR(MeasureUpload(bench, found));
  RETURN_IF_ERROR(MeasureProducts(bench, 10 * properties.major + properties.minor, found));
  return found;
}

absl::StatusOr<std::vector<comm::AllReduceTiming>> MeasureAllReduce(int32_t num_gpus) {
  if (num_gpus < 2) return InvalidArgument("an all-reduce is among two or more, got {}", num_gpus);
  RETURN_IF_ERROR(CheckCount(num_gpus, "measuring all-reduces"));
  std::vector<std::unique_ptr<comm::NcclFactory>> factories;
  for (int32_t i = 0; i < num_gpus; ++i) {
    ASSIGN_OR_RETURN(std::unique_ptr<comm::NcclFactory> factory, comm::MakeNcclFactory(i));
    factories.push_back(std::move(factory));
  }
  ASSIGN_OR_RETURN(const std::string id, factories[0]->MakeId());
  std::vector<absl::StatusOr<std::vector<comm::AllReduceTiming>>> found(
      static_cast<size_t>(num_gpus));
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < num_gpus; ++rank) {
    const size_t i = static_cast<size_t>(rank);
    threads.emplace_back([&, rank, i] { found[i] = TimeRank(rank, num_gpus, *factories[i], id); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& times : found) RETURN_IF_ERROR(times.status());
  return found[0];
}

}  // namespace polyreme::cuda
