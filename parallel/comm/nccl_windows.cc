#include "parallel/comm/nccl_windows.h"

#include <algorithm>

namespace polyreme::comm {
namespace {

constexpr int64_t kSmallest = 8 << 10;
constexpr int64_t kLargest = 16 << 20;
constexpr int kSizes = 12;  // powers of two
static_assert(kSmallest << (kSizes - 1) == kLargest);
static_assert(2 * kSizes <= NcclStage::kFloats);
// All-reduces of one graph, and timed launches of it.
constexpr int kReductions = 20;
constexpr int kLaunches = 3;

struct GraphDeleter {
  void operator()(cudaGraph_t graph) const { (void)cudaGraphDestroy(graph); }
  void operator()(cudaGraphExec_t graph) const { (void)cudaGraphExecDestroy(graph); }
  void operator()(cudaEvent_t event) const { (void)cudaEventDestroy(event); }
};
template <class Pointer>
using Owned = std::unique_ptr<std::remove_pointer_t<Pointer>, GraphDeleter>;

absl::StatusOr<Owned<cudaEvent_t>> MakeEvent() {
  cudaEvent_t event = nullptr;
  RETURN_IF_ERROR(CudaStatus(cudaEventCreate(&event), "cudaEventCreate"));
  return Owned<cudaEvent_t>(event);
}

absl::Status Sum(NcclGroup& group, const ncclComm_t* comm, cudaStream_t stream, void* arena,
                 int64_t bytes, absl::Time deadline) {
  return group.Call("all-reduce while measuring", comm, deadline, [&] {
    return group.nccl().all_reduce(arena, arena, static_cast<size_t>(bytes / 2), ncclBfloat16,
                                   ncclSum, *comm, stream);
  });
}

// kReductions all-reduces of `bytes` of the arena.
absl::StatusOr<Owned<cudaGraphExec_t>> Capture(NcclGroup& group, const ncclComm_t* comm,
                                               cudaStream_t stream, void* arena, int64_t bytes,
                                               absl::Time deadline) {
  RETURN_IF_ERROR(CudaStatus(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                             "capturing all-reduces"));
  absl::Status status;
  for (int i = 0; i < kReductions && status.ok(); ++i) {
    status = Sum(group, comm, stream, arena, bytes, deadline);
  }
  cudaGraph_t captured = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &captured);
  const Owned<cudaGraph_t> graph(captured);
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(CudaStatus(ended, "capturing all-reduces"));
  cudaGraphExec_t made = nullptr;
  RETURN_IF_ERROR(CudaStatus(cudaGraphInstantiate(&made, graph.get(), 0), "cudaGraphInstantiate"));
  return Owned<cudaGraphExec_t>(made);
}

// Seconds of one all-reduce.
absl::StatusOr<float> TimeAllReduce(NcclGroup& group, const ncclComm_t* comm, cudaStream_t stream,
                                    void* arena, int64_t bytes, absl::Time deadline) {
  // Outside the capture first: NCCL connects on the first use of each of its algorithms.
  RETURN_IF_ERROR(Sum(group, comm, stream, arena, bytes, deadline));
  RETURN_IF_ERROR(group.WaitFor(stream, "measuring all-reduces", deadline));
  ASSIGN_OR_RETURN(const Owned<cudaGraphExec_t> graph,
                   Capture(group, comm, stream, arena, bytes, deadline));
  ASSIGN_OR_RETURN(const Owned<cudaEvent_t> begin, MakeEvent());
  ASSIGN_OR_RETURN(const Owned<cudaEvent_t> end, MakeEvent());
  // The first launch makes up for ranks that come at different times.
  RETURN_IF_ERROR(CudaStatus(cudaGraphLaunch(graph.get(), stream), "cudaGraphLaunch"));
  RETURN_IF_ERROR(CudaStatus(cudaEventRecord(begin.get(), stream), "cudaEventRecord"));
  for (int i = 0; i < kLaunches; ++i) {
    RETURN_IF_ERROR(CudaStatus(cudaGraphLaunch(graph.get(), stream), "cudaGraphLaunch"));
  }
  RETURN_IF_ERROR(CudaStatus(cudaEventRecord(end.get(), stream), "cudaEventRecord"));
  RETURN_IF_ERROR(group.WaitFor(stream, "measuring all-reduces", deadline));
  float milliseconds = 0;
  RETURN_IF_ERROR(CudaStatus(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()),
                             "cudaEventElapsedTime"));
  return milliseconds * 1e-3f / (kReductions * kLaunches);
}

}  // namespace

bool WindowWins(absl::Span<const AllReduceTiming> timings, int64_t bytes) {
  const AllReduceTiming* nearest = nullptr;
  for (const AllReduceTiming& timing : timings) {
    // Halfway to the next power of two the next one counts.
    if (nearest == nullptr || 4 * bytes >= 3 * timing.bytes) nearest = &timing;
  }
  return nearest != nullptr && nearest->window_seconds > 0 &&
         nearest->window_seconds < nearest->plain_seconds;
}

absl::StatusOr<std::unique_ptr<NcclStage>> NcclStage::Make(const NcclGroup& group) {
  std::unique_ptr<NcclStage> stage(new NcclStage(group));
  RETURN_IF_ERROR(
      CudaStatus(cudaStreamCreateWithFlags(&stage->stream_, cudaStreamNonBlocking), "a stream"));
  void* memory = nullptr;
  RETURN_IF_ERROR(CudaStatus(cudaMalloc(&memory, kFloats * sizeof(float)), "a few bytes"));
  stage->memory_ = static_cast<float*>(memory);
  RETURN_IF_ERROR(
      CudaStatus(cudaMemsetAsync(memory, 0, kFloats * sizeof(float), stage->stream_), "clearing"));
  return stage;
}

NcclStage::~NcclStage() {
  if (memory_ != nullptr && group_.end().ok()) (void)cudaFree(memory_);
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}

absl::Status Agree(NcclGroup& group, const NcclStage& stage, ncclRedOp_t how, absl::Time deadline,
                   absl::Span<float> values) {
  CHECK(values.size() <= NcclStage::kFloats);
  const size_t bytes = values.size() * sizeof(float);
  RETURN_IF_ERROR(CudaStatus(
      cudaMemcpyAsync(stage.memory(), values.data(), bytes, cudaMemcpyHostToDevice, stage.stream()),
      "agreeing"));
  const ncclComm_t* const comm = &group.communicators().plain;
  RETURN_IF_ERROR(group.Call("agreeing", comm, deadline, [&] {
    return group.nccl().all_reduce(stage.memory(), stage.memory(), values.size(), ncclFloat32, how,
                                   *comm, stage.stream());
  }));
  // Waited for before the copy, which to pageable memory would wait without a deadline.
  RETURN_IF_ERROR(group.WaitFor(stage.stream(), "agreeing", deadline));
  RETURN_IF_ERROR(CudaStatus(
      cudaMemcpyAsync(values.data(), stage.memory(), bytes, cudaMemcpyDeviceToHost, stage.stream()),
      "agreeing"));
  return group.WaitFor(stage.stream(), "agreeing", deadline);
}

absl::StatusOr<std::vector<AllReduceTiming>> MeasureAllReduce(NcclGroup& group,
                                                              const NcclStage& stage,
                                                              TensorView arena,
                                                              absl::Time deadline) {
  std::vector<AllReduceTiming> timings;
  std::vector<float> seconds;
  const NcclGroup::Communicators& comms = group.communicators();
  const bool windows = comms.window != nullptr;
  for (int64_t bytes = kSmallest; bytes <= std::min(kLargest, arena.bytes()); bytes *= 2) {
    for (const ncclComm_t* comm : {&comms.plain, &comms.windows}) {
      float time = 0;
      if (comm == &comms.plain || windows) {
        ASSIGN_OR_RETURN(time,
                         TimeAllReduce(group, comm, stage.stream(), arena.data, bytes, deadline));
      }
      seconds.push_back(time);
    }
    timings.push_back({.bytes = bytes});
  }
  if (timings.empty()) return timings;
  RETURN_IF_ERROR(Agree(group, stage, ncclMax, deadline, absl::MakeSpan(seconds)));
  for (size_t i = 0; i < timings.size(); ++i) {
    timings[i].plain_seconds = static_cast<double>(seconds[2 * i]);
    timings[i].window_seconds = static_cast<double>(seconds[2 * i + 1]);
  }
  return timings;
}

}  // namespace polyreme::comm
