#include "tests/parallel/gpu_ranks.h"

#include <gtest/gtest.h>

#include <thread>
#include <utility>

#include "parallel/base/clock.h"
#include "parallel/comm/nccl_group.h"

namespace polyreme::comm {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);

absl::Status RunRank(int rank, int ranks, const std::string& id,
                     const std::function<void(GpuRank&)>& body) {
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(rank), "cudaSetDevice"));
  ASSIGN_OR_RETURN(const std::unique_ptr<NcclFactory> factory, MakeNcclFactory(rank));
  ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> group,
                   factory->Make(SpecOfRanks(rank, ranks, kPatience), id));
  StreamLane lane;
  GpuRank self{rank, ranks, factory.get(), group.get(), &lane};
  body(self);
  return lane.Drain();
}

}  // namespace

StreamLane::StreamLane() {
  status_ = CudaStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
}

StreamLane::~StreamLane() {
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}

absl::Status StreamLane::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

void StreamLane::Fail(absl::Status why) {
  std::function<void(const absl::Status&)> hook;
  {
    const std::lock_guard lock(mutex_);
    if (!status_.ok()) return;
    status_ = why;
    hook = hook_;
  }
  if (hook) hook(why);
}

void StreamLane::SetFailureHook(std::function<void(const absl::Status&)> hook) {
  const std::lock_guard lock(mutex_);
  hook_ = std::move(hook);
}

absl::Status StreamLane::Wait(LaneMark, absl::Time deadline) {
  while (ok()) {
    const cudaError_t error = cudaStreamQuery(stream_);
    if (error == cudaSuccess) return status();
    if (error != cudaErrorNotReady) return CudaStatus(error, "waiting for the lane");
    if (MonotonicNow() >= deadline) return DeadlineExceeded("the lane is still not done");
    std::this_thread::yield();
  }
  return status();
}

absl::Status StreamLane::Drain() {
  return Wait({}, MonotonicNow() + absl::Seconds(10));
}

int CountGpus() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

GroupSpec SpecOfRanks(int rank, int ranks, absl::Duration patience) {
  GroupSpec spec;
  spec.name = "tensor group 0 of epoch 7";
  spec.rank = rank;
  for (int i = 0; i < ranks; ++i) spec.members.push_back(Rank{i});
  spec.deadline = MonotonicNow() + patience;
  spec.patience = patience;
  return spec;
}

std::vector<absl::Status> RunGpuRanks(int ranks, const std::function<void(GpuRank&)>& body) {
  std::vector<absl::Status> statuses(static_cast<size_t>(ranks));
  const absl::StatusOr<std::unique_ptr<NcclFactory>> first = MakeNcclFactory(0);
  if (!first.ok()) return std::vector<absl::Status>(statuses.size(), first.status());
  std::string id;
  if (ranks > 1) {
    const absl::StatusOr<std::string> made = (*first)->MakeId();
    if (!made.ok()) return std::vector<absl::Status>(statuses.size(), made.status());
    id = *made;
  }
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back(
        [&, rank] { statuses[static_cast<size_t>(rank)] = RunRank(rank, ranks, id, body); });
  }
  for (std::thread& thread : threads) thread.join();
  return statuses;
}

void ExpectGpuRanksWell(int ranks, const std::function<void(GpuRank&)>& body) {
  const std::vector<absl::Status> statuses = RunGpuRanks(ranks, body);
  for (int rank = 0; rank < ranks; ++rank) {
    EXPECT_TRUE(statuses[static_cast<size_t>(rank)].ok())
        << "rank " << rank << ": " << statuses[static_cast<size_t>(rank)];
  }
}

}  // namespace polyreme::comm
