// Rank to GPU, as the launchers show GPUs.

#include "worker/backend/cuda/gpu_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace polyreme::cuda {
namespace {

using testing::HasSubstr;

std::vector<GpuDescription> Gpus(int32_t count) {
  std::vector<GpuDescription> gpus;
  for (int32_t i = 0; i < count; ++i) {
    GpuDescription& gpu = gpus.emplace_back();
    gpu.index = i;
    gpu.bus_id = fmt::format("0000:{:02x}:00.0", 16 + i);
  }
  return gpus;
}

TEST(ChooseGpu, GivesEachRankItsOwnByOrder) {
  const std::vector<GpuDescription> gpus = Gpus(4);
  for (int32_t rank = 0; rank < 4; ++rank) {
    const absl::StatusOr<int32_t> gpu = ChooseGpu(rank, 4, gpus, false);
    ASSERT_TRUE(gpu.ok()) << gpu.status();
    EXPECT_EQ(*gpu, rank);
  }
}

TEST(ChooseGpu, FewerRanksThanGpusTakeTheFirst) {
  EXPECT_EQ(*ChooseGpu(1, 2, Gpus(8), false), 1);
}

TEST(ChooseGpu, OneGpuPerTaskIsEachTasksOwn) {
  for (int32_t rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(*ChooseGpu(rank, 4, Gpus(1), false), 0);
  }
}

TEST(ChooseGpu, TooFewGpusAreRefusedWithBothNumbers) {
  EXPECT_TRUE(ChooseGpu(1, 4, Gpus(2), false).ok());
  const absl::StatusOr<int32_t> gpu = ChooseGpu(2, 4, Gpus(2), false);
  ASSERT_TRUE(absl::IsFailedPrecondition(gpu.status()));
  EXPECT_THAT(Message(gpu.status()),
              testing::AllOf(HasSubstr("local rank 2"), HasSubstr("4 ranks"), HasSubstr("2 GPUs"),
                             HasSubstr("--allow-shared-gpu")));
}

TEST(ChooseGpu, SharedRanksGoRoundTheGpus) {
  EXPECT_EQ(*ChooseGpu(2, 4, Gpus(2), true), 0);
  EXPECT_EQ(*ChooseGpu(3, 4, Gpus(2), true), 1);
}

TEST(ChooseGpu, NoGpuIsOneSentence) {
  const absl::StatusOr<int32_t> gpu = ChooseGpu(0, 1, {}, true);
  ASSERT_TRUE(absl::IsFailedPrecondition(gpu.status()));
  EXPECT_THAT(Message(gpu.status()), HasSubstr("CUDA_VISIBLE_DEVICES"));
}

TEST(GpuIdentity, DiffersByHostAndByGpu) {
  const std::vector<GpuDescription> gpus = Gpus(2);
  EXPECT_EQ(GpuIdentity("a", gpus[0]), "a/0000:10:00.0");
  EXPECT_NE(GpuIdentity("a", gpus[0]), GpuIdentity("a", gpus[1]));
  EXPECT_NE(GpuIdentity("a", gpus[0]), GpuIdentity("b", gpus[0]));
}

}  // namespace
}  // namespace polyreme::cuda
