// What happens when a peer does not come: bounded times, one reason, no hanging.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <barrier>
#include <thread>

#include "parallel/base/clock.h"
#include "parallel/comm/nccl_group.h"
#include "tests/parallel/gpu_ranks.h"

namespace polyreme::comm {
namespace {

using testing::HasSubstr;

class NcclFailure : public testing::Test {
 protected:
  void SetUp() override {
    const int gpus = CountGpus();
    if (gpus < 2) GTEST_SKIP() << "needs two GPUs, found " << gpus;
  }
};

// Zeroed device memory; not given back when work on it may hang.
TensorView Floats(int64_t count) {
  void* data = nullptr;
  EXPECT_EQ(cudaMalloc(&data, static_cast<size_t>(count) * 4), cudaSuccess);
  EXPECT_EQ(cudaMemset(data, 0, static_cast<size_t>(count) * 4), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  return {data, DType::kF32, Shape{count}};
}

// Until the GPU has nothing more to do on the lane's stream; how long that took.
absl::Duration UntilIdle(const StreamLane& lane, absl::Duration patience) {
  const absl::Time begin = MonotonicNow();
  while (cudaStreamQuery(lane.stream()) == cudaErrorNotReady && MonotonicNow() - begin < patience) {
    std::this_thread::yield();
  }
  return MonotonicNow() - begin;
}

TEST_F(NcclFailure, ARankThatDoesNotJoinIsADeadline) {
  const absl::StatusOr<std::unique_ptr<NcclFactory>> factory = MakeNcclFactory(0);
  ASSERT_TRUE(factory.ok()) << factory.status();
  const absl::StatusOr<std::string> id = (*factory)->MakeId();
  ASSERT_TRUE(id.ok()) << id.status();
  const absl::Time begin = MonotonicNow();
  const auto group = (*factory)->Make(SpecOfRanks(0, 2, absl::Seconds(2)), *id);
  EXPECT_LT(MonotonicNow() - begin, absl::Seconds(6));
  ASSERT_TRUE(absl::IsDeadlineExceeded(group.status())) << group.status();
  EXPECT_THAT(Message(group.status()),
              testing::AllOf(HasSubstr("tensor group 0 of epoch 7"), HasSubstr("rank 1")));
}

TEST_F(NcclFailure, AnIdOfAnotherKindIsRefused) {
  const absl::StatusOr<std::unique_ptr<NcclFactory>> factory = MakeNcclFactory(0);
  ASSERT_TRUE(factory.ok()) << factory.status();
  const auto group = (*factory)->Make(SpecOfRanks(0, 2, absl::Seconds(2)), "short");
  EXPECT_TRUE(absl::IsInvalidArgument(group.status())) << group.status();
}

// Until the lane has failed, two seconds at most.
absl::Status UntilFailed(const StreamLane& lane) {
  const absl::Time begin = MonotonicNow();
  while (lane.ok() && MonotonicNow() - begin < absl::Seconds(2)) std::this_thread::yield();
  return lane.status();
}

// NCCL connects on the first use of each algorithm, which takes all ranks.
void SumOnce(GpuRank& self, TensorView x) {
  self.group->AllReduceSum(*self.lane, x);
  EXPECT_EQ(self.lane->Drain(), absl::OkStatus());
}

TEST_F(NcclFailure, AbortEndsASumWhosePeerNeverComes) {
  std::barrier met(2);
  const std::vector<absl::Status> statuses = RunGpuRanks(2, [&](GpuRank& self) {
    const TensorView x = Floats(5120);
    SumOnce(self, x);
    self.group->FailWithGroup(self.lane);
    if (self.rank == 0) self.group->AllReduceSum(*self.lane, x);
    EXPECT_TRUE(self.lane->ok()) << self.lane->status();
    met.arrive_and_wait();
    const absl::Time begin = MonotonicNow();
    self.group->Abort(Unavailable("rank {} says that it is over", self.rank));
    self.group->Abort(Internal("a later reason"));
    EXPECT_LT(MonotonicNow() - begin, absl::Milliseconds(100)) << "Abort waits";
    EXPECT_TRUE(absl::IsUnavailable(UntilFailed(*self.lane))) << self.lane->status();
    EXPECT_LT(UntilIdle(*self.lane, absl::Seconds(5)), absl::Seconds(2)) << "the GPU waits";
    StreamLane other;
    self.group->AllReduceSum(other, x);
    EXPECT_THAT(Message(other.status()), HasSubstr("says that it is over"));
    EXPECT_LT(MonotonicNow() - begin, absl::Seconds(2));
    self.group->FailWithGroup(nullptr);
  });
  for (const absl::Status& status : statuses) {
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr("tensor group 0 of epoch 7"));
  }
}

TEST_F(NcclFailure, AbortEndsAReplayedGraphWhosePeerNeverComes) {
  std::barrier met(2);
  const std::vector<absl::Status> statuses = RunGpuRanks(2, [&](GpuRank& self) {
    const TensorView x = Floats(5120);
    SumOnce(self, x);
    self.group->FailWithGroup(self.lane);
    const cudaStream_t stream = self.lane->stream();
    EXPECT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    self.group->AllReduceSum(*self.lane, x);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    EXPECT_EQ(cudaGraphInstantiate(&ready, graph, 0), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
    if (self.rank == 0) {
      EXPECT_EQ(cudaGraphLaunch(ready, stream), cudaSuccess);
    }
    met.arrive_and_wait();
    self.group->Abort(Cancelled("the peer is gone"));
    EXPECT_EQ(UntilFailed(*self.lane).code(), absl::StatusCode::kCancelled);
    EXPECT_LT(UntilIdle(*self.lane, absl::Seconds(5)), absl::Seconds(2)) << "the GPU waits";
    EXPECT_EQ(cudaGraphExecDestroy(ready), cudaSuccess);
    self.group->FailWithGroup(nullptr);
  });
  for (const absl::Status& status : statuses) {
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
  }
}

TEST_F(NcclFailure, ALaneThatComesLateHearsOfTheEndAtOnce) {
  (void)RunGpuRanks(2, [&](GpuRank& self) {
    self.group->Abort(Cancelled("before"));
    self.group->FailWithGroup(self.lane);
    EXPECT_EQ(self.lane->status().code(), absl::StatusCode::kCancelled);
    self.group->FailWithGroup(nullptr);
  });
}

TEST_F(NcclFailure, ANewGroupWorksAfterAnAbortedOne) {
  (void)RunGpuRanks(2, [&](GpuRank& self) { self.group->Abort(Cancelled("first")); });
  ExpectGpuRanksWell(2, [&](GpuRank& self) { self.group->AllReduceSum(*self.lane, Floats(100)); });
}

// Kernels of symmetric windows do not look at the abort flag (NCCL 2.28): the GPU stays busy, but
// the process must be able to say why and end. In a process of its own, which then ends.
void EndWithAWindowWaiting() {
  std::barrier met(2);
  (void)RunGpuRanks(2, [&](GpuRank& self) {
    constexpr int64_t kArena = int64_t{32} << 20;
    absl::StatusOr<Buffer> arena = self.factory->AllocateArena(kArena);
    if (!arena.ok() || !self.group->UseArena({arena->data(), DType::kU8, Shape{kArena}}).ok()) {
      _exit(2);
    }
    if (self.rank == 0) {
      self.group->AllReduceSum(*self.lane, {arena->data(), DType::kBF16, Shape{5120}});
    }
    met.arrive_and_wait();
    const absl::Time begin = MonotonicNow();
    self.group->FailWithGroup(self.lane);
    self.group->Abort(Cancelled("the peer is gone"));
    while (self.lane->ok() && MonotonicNow() - begin < absl::Seconds(3)) std::this_thread::yield();
    if (self.lane->status().code() != absl::StatusCode::kCancelled) _exit(3);
    if (MonotonicNow() - begin > absl::Seconds(2)) _exit(4);
    // The memory stays: giving it back would wait for the GPU.
    (void)new Buffer(*std::move(arena));
    met.arrive_and_wait();
    _exit(0);
  });
}

TEST_F(NcclFailure, AProcessEndsWhileItsWindowWaitsForAPeer) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(EndWithAWindowWaiting(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace polyreme::comm
