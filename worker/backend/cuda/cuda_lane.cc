#include "worker/backend/cuda/cuda_lane.h"

#include <fmt/format.h>

#include <chrono>
#include <thread>
#include <type_traits>

#include "parallel/base/clock.h"
#include "parallel/base/log.h"
#include "worker/backend/cuda/cuda_status.h"

namespace polyreme::cuda {
namespace {

constexpr int64_t kAlignment = 64;
// Waiting: this long without pause, then with pauses.
constexpr absl::Duration kSpin = absl::Microseconds(50);
constexpr std::chrono::microseconds kPause{20};
constexpr absl::Duration kDrain = absl::Seconds(10);

int64_t RoundUp(int64_t value) {
  return (value + kAlignment - 1) / kAlignment * kAlignment;
}

// Asks without leaving "not ready" behind as the thread's last error.
cudaError_t Query(cudaEvent_t event) {
  const cudaError_t error = cudaEventQuery(event);
  if (error == cudaErrorNotReady) (void)cudaGetLastError();
  return error;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaLane>> CudaLane::Make(int32_t device_index, Buffer arena,
                                                         bool record) {
  auto lane = std::unique_ptr<CudaLane>(new CudaLane(device_index, std::move(arena), record));
  RETURN_IF_CUDA_ERROR(cudaSetDevice(device_index), "a lane's device");
  RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&lane->stream_, cudaStreamNonBlocking),
                       "a lane's stream");
  for (cudaEvent_t& event : lane->mark_events_) {
    RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&event, cudaEventDisableTiming),
                         "an event of a lane");
  }
  ASSIGN_OR_RETURN(lane->uploads_, UploadRing::Make(lane->stream_));
  return lane;
}

CudaLane::~CudaLane() {
  (void)cudaSetDevice(device_index_);
  if (!Drain()) {
    // Freeing what the GPU still uses would wait for ever.
    LogError("GPU {}: work on a lane did not end within {}; its memory is not given back",
             device_index_, absl::FormatDuration(kDrain));
    for (auto& [key, recording] : recordings_) (void)recording.graph.release();
    (void)uploads_.release();
    (void)new Buffer(std::move(arena_));
    return;
  }
  recordings_.clear();
  uploads_.reset();
  for (const cudaEvent_t event : mark_events_) {
    if (event != nullptr) (void)cudaEventDestroy(event);
  }
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  (void)cudaGetLastError();
}

bool CudaLane::Drain() const {
  if (stream_ == nullptr) return true;
  const absl::Time deadline = MonotonicNow() + kDrain;
  while (cudaStreamQuery(stream_) == cudaErrorNotReady) {
    (void)cudaGetLastError();
    if (MonotonicNow() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

bool CudaLane::Check(cudaError_t error, std::string_view what) const {
  if (error == cudaSuccess) [[likely]]
    return true;
  failure_.Fail(CudaStatus(error, fmt::format("GPU {}, {}", device_index_, what)));
  return false;
}

TensorView CudaLane::Scratch(DType dtype, const Shape& shape) {
  TensorView view{nullptr, dtype, shape};
  const int64_t bytes = RoundUp(view.bytes());
  CHECK(bytes <= arena_.bytes() - taken_,
        "scratch {} of {} exceeds the arena: {} of {} bytes taken", shape.ToString(), NameOf(dtype),
        taken_, arena_.bytes());
  view.data = static_cast<std::byte*>(arena_.data()) + taken_;
  taken_ += bytes;
  return view;
}

void CudaLane::RestoreScratch(int64_t watermark) {
  CHECK(watermark >= 0 && watermark <= taken_, "watermark {} of {} bytes taken", watermark, taken_);
  taken_ = watermark;
}

TensorView CudaLane::arena() const {
  if (arena_.data() == nullptr) return {};
  return {arena_.data(), DType::kU8, Shape({arena_.bytes()})};
}

cudaStream_t CudaLane::stream() const {
  Check(cudaSetDevice(device_index_), "making it current");
  if (!uploads_->empty()) Check(uploads_->Flush(), "the step's upload");
  return stream_;
}

void CudaLane::Upload(const void* from, int64_t bytes, void* to) {
  CHECK(!recording_, "an upload of {} bytes cannot be recorded", bytes);
  if (!ok() || bytes == 0) return;
  if (uploads_->Add(from, bytes, to)) return;
  const cudaStream_t after_pending = stream();
  if (uploads_->Add(from, bytes, to)) return;
  Check(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, after_pending),
      "an upload");
}

void CudaLane::Download(const void* from, int64_t bytes, void* to) {
  CHECK(!recording_, "a download of {} bytes cannot be recorded", bytes);
  if (!ok() || bytes == 0) return;
  Check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream()),
        "a download");
}

void CudaLane::Copy(const void* from, int64_t bytes, void* to) {
  if (!ok() || bytes == 0) return;
  Check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream()),
        "a copy");
}

LaneMark CudaLane::Mark() {
  CHECK(!recording_, "a mark cannot be recorded");
  const int64_t mark = marks_.load() + 1;
  if (ok()) Check(cudaEventRecord(EventOf(mark), stream()), "a mark");
  marks_.store(mark);
  return {mark};
}

absl::Status CudaLane::Wait(LaneMark mark, absl::Time deadline) {
  CHECK(mark.value <= marks_, "mark {} was never made; the last is {}", mark.value, marks_.load());
  if (!ok()) return status();
  Check(cudaSetDevice(device_index_), "making it current");
  const absl::Time begin = MonotonicNow();
  while (ok()) {
    const cudaError_t reached = Query(EventOf(mark.value));
    if (reached != cudaErrorNotReady) {
      Check(reached, "waiting for the work of a step");
      break;
    }
    const absl::Time now = MonotonicNow();
    if (now > deadline) {
      return DeadlineExceeded("GPU {}: the work of a step did not end within {}", device_index_,
                              absl::FormatDuration(now - begin));
    }
    if (now - begin > kSpin) failure_.AwaitFailure(kPause);
  }
  return status();
}

void CudaLane::Replay(const ReplayKey& key, absl::FunctionRef<void()> body) {
  CHECK(!recording_, "a replay inside a replay");
  if (!ok()) return;
  if (!record_ || !key.decode_only) {
    body();
    return;
  }
  const auto found = recordings_.find({key.num_tokens, key.num_samples});
  if (found == recordings_.end()) {
    Record(key, body);
    return;
  }
  CHECK(found->second.watermark == taken_,
        "the step of {} rows was recorded with {} bytes of scratch taken, now there are {}",
        key.num_tokens, found->second.watermark, taken_);
  Check(cudaGraphLaunch(found->second.graph.get(), stream()), "replaying a step");
}

void CudaLane::Record(const ReplayKey& key, absl::FunctionRef<void()> body) {
  const int64_t watermark = taken_;
  const std::string what = fmt::format("recording a step of {} rows", key.num_tokens);
  if (!Check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), what)) return;
  recording_ = true;
  body();
  recording_ = false;
  taken_ = watermark;
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream_, &graph);
  // What the body itself said is the better reason; a second one is not kept.
  if (Check(ended, what) && ok()) {
    cudaGraphExec_t ready = nullptr;
    if (Check(cudaGraphInstantiate(&ready, graph, 0), what)) {
      Recording recording{{}, watermark};
      recording.graph.reset(ready);
      recordings_.emplace(std::pair{key.num_tokens, key.num_samples}, std::move(recording));
      Check(cudaGraphLaunch(ready, stream_), what);
    }
  }
  if (graph != nullptr) (void)cudaGraphDestroy(graph);
}

}  // namespace polyreme::cuda
