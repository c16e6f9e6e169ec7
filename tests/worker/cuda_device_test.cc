// A GPU's memory and lane, through the doors that everybody uses: uploads in order, recorded steps,
// waiting and failing.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>

#include "parallel/base/clock.h"
#include "tests/worker/ops_harness.h"

namespace polyreme::ops {
namespace {

constexpr uint32_t kSeed = 20261124;
constexpr int64_t kGiB = int64_t{1} << 30;

absl::Time Soon() {
  return MonotonicNow() + absl::Seconds(60);
}

absl::StatusOr<std::unique_ptr<backend::Backend>> MakeFloatBackend(bool eager) {
  UseBuiltCudaPlugin();
  backend::BackendOptions options;
  options.dtype = DType::kF32;
  options.enforce_eager = eager;
  return backend::MakeBackend("cuda", options);
}

class CudaDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (const absl::Status gpu = GpuAvailable(); !gpu.ok()) GTEST_SKIP() << Message(gpu);
    auto made = MakeFloatBackend(false);
    ASSERT_TRUE(made.ok()) << Message(made.status());
    backend_ = std::move(made).value();
    lane_ = MakeLane();
  }
  std::unique_ptr<Lane> MakeLane() {
    auto lane = backend_->device().MakeLane(int64_t{1} << 20);
    CHECK(lane.ok(), "{}", Message(lane.status()));
    return std::move(lane).value();
  }
  Device& device() { return backend_->device(); }
  Buffer Memory(int64_t bytes) {
    auto buffer = device().Allocate(bytes);
    CHECK(buffer.ok(), "{}", Message(buffer.status()));
    return std::move(buffer).value();
  }
  Buffer HostMemory(int64_t bytes) {
    auto buffer = device().AllocateHost(bytes);
    CHECK(buffer.ok(), "{}", Message(buffer.status()));
    return std::move(buffer).value();
  }
  // After all that is on the lane.
  std::vector<uint8_t> Bytes(const Buffer& buffer) {
    const absl::Status reached = lane_->Wait(lane_->Mark(), Soon());
    CHECK(reached.ok(), "{}", Message(reached));
    std::vector<uint8_t> bytes(static_cast<size_t>(buffer.bytes()));
    CHECK(device().CopyToHost(buffer.data(), buffer.bytes(), bytes.data()).ok());
    return bytes;
  }
  std::vector<float> Floats(const Buffer& buffer) {
    const std::vector<uint8_t> bytes = Bytes(buffer);
    std::vector<float> floats(bytes.size() / 4);
    std::memcpy(floats.data(), bytes.data(), bytes.size());
    return floats;
  }
  void Upload(const void* from, int64_t bytes, const Buffer& to, int64_t offset = 0) {
    device().Upload(*lane_, from, bytes, static_cast<std::byte*>(to.data()) + offset);
  }
  static TensorView Row(const Buffer& buffer) {
    return {buffer.data(), DType::kF32, Shape({1, buffer.bytes() / 4})};
  }
  // About a second of work on an H200, more on others.
  void BusyLane(const Buffer& from, const Buffer& to) {
    for (int i = 0; i < 2000; ++i) device().Copy(*lane_, from.data(), from.bytes(), to.data());
  }

  std::unique_ptr<backend::Backend> backend_;
  std::unique_ptr<Lane> lane_;
};

TEST_F(CudaDevice, MemoryIsZeroedAndAlignedAndComesBackAsItWent) {
  const Buffer memory = Memory(1000003);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.data()) % 64, 0u);
  EXPECT_EQ(Bytes(memory), std::vector<uint8_t>(1000003));
  std::vector<uint8_t> pattern(1000003);
  std::iota(pattern.begin(), pattern.end(), uint8_t{7});
  ASSERT_TRUE(device().CopyFromHost(pattern.data(), memory.bytes(), memory.data()).ok());
  EXPECT_EQ(Bytes(memory), pattern);
  EXPECT_GT(device().FreeBytes(), 0);
  EXPECT_LE(device().FreeBytes(), device().TotalBytes());
}

TEST_F(CudaDevice, TooMuchMemorySaysWhatWasAskedAndLeavesTheDeviceUsable) {
  const auto memory = device().Allocate(device().TotalBytes() * 4);
  ASSERT_EQ(memory.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(Message(memory.status()).find(std::to_string(device().TotalBytes() * 4)),
            std::string::npos)
      << Message(memory.status());
  const Buffer x = Memory(64);
  backend_->ops().Add(*lane_, Row(x), Row(x));
  EXPECT_EQ(Message(lane_->Wait(lane_->Mark(), Soon())), "");
}

TEST_F(CudaDevice, UploadsOfAnySizeAndAlignmentArriveInTheirOrder) {
  constexpr int64_t kBytes = 1 << 20;
  const Buffer memory = Memory(kBytes);
  std::vector<uint8_t> want(kBytes);
  std::mt19937 random(kSeed);
  const Buffer host = HostMemory(64 << 20);
  auto* const source = static_cast<uint8_t*>(host.data());
  for (int64_t i = 0; i < host.bytes(); ++i) source[i] = static_cast<uint8_t>(random() >> 13);
  int64_t from = 0;
  for (int i = 0; i < 6000; ++i) {
    // Mostly small and often on top of each other; some that go by themselves.
    const int64_t most = i % 100 == 99 ? 200000 : i % 10 == 9 ? 5000 : 70;
    const int64_t bytes = 1 + static_cast<int64_t>(random()) % most;
    const int64_t offset = static_cast<int64_t>(random()) % (i % 3 == 0 ? 4096 : kBytes - bytes);
    Upload(source + from, bytes, memory, offset);
    std::copy_n(source + from, bytes, want.begin() + offset);
    from += bytes;
  }
  ASSERT_LE(from, host.bytes());
  const std::vector<uint8_t> got = Bytes(memory);
  const auto differ = std::mismatch(got.begin(), got.end(), want.begin());
  EXPECT_EQ(differ.first, got.end()) << "first at byte " << differ.first - got.begin();
}

TEST_F(CudaDevice, UploadsComeBeforeWhatFollowsOnTheLane) {
  const Buffer x = Memory(256);
  const Buffer y = Memory(256);
  const Buffer host = HostMemory(256);
  const std::vector<float> ones(64, 1.0f);
  const std::vector<float> twos(64, 2.0f);
  Upload(ones.data(), 256, x);
  backend_->ops().Add(*lane_, Row(x), Row(x));     // a kernel: x = 2
  device().Copy(*lane_, x.data(), 256, y.data());  // y = 2
  Upload(twos.data(), 128, y, 128);
  backend_->ops().Add(*lane_, Row(x), Row(y));  // y = 4
  Upload(ones.data(), 128, x);                  // does not reach the kernel before
  device().Download(*lane_, y.data(), 256, host.data());
  ASSERT_TRUE(lane_->Wait(lane_->Mark(), Soon()).ok());
  const auto* got = static_cast<const float*>(host.data());
  EXPECT_EQ(std::vector<float>(got, got + 64), std::vector<float>(64, 4.0f));
  EXPECT_EQ(Floats(x)[0], 1.0f);
  EXPECT_EQ(Floats(x)[63], 2.0f);
}

TEST_F(CudaDevice, ARecordedStepReadsFreshDataAndItsBodyRunsOnce) {
  const Buffer x = Memory(4096);
  const Buffer delta = Memory(4096);
  int calls = 0;
  std::vector<float> want(1024);
  for (const float value : {1.0f, 10.0f, 100.0f}) {
    const std::vector<float> values(1024, value);
    Upload(values.data(), 4096, delta);
    lane_->Replay({1, 1, true}, [&] {
      ++calls;
      const TensorView temporary = lane_->Scratch(DType::kF32, Shape({1, 1024}));
      device().Copy(*lane_, delta.data(), 4096, temporary.data);
      backend_->ops().Add(*lane_, temporary, Row(x));
    });
    for (float& each : want) each += value;
    EXPECT_EQ(Floats(x), want) << "after adding " << value;
    lane_->Rewind();
  }
  EXPECT_EQ(calls, 1);
  for (int i = 0; i < 2; ++i) lane_->Replay({1, 2, true}, [&] { ++calls; });
  EXPECT_EQ(calls, 2) << "another key is another recording";
  for (int i = 0; i < 2; ++i) lane_->Replay({1, 1, false}, [&] { ++calls; });
  EXPECT_EQ(calls, 4) << "prompts are never recorded";
  EXPECT_EQ(Message(lane_->status()), "");
}

TEST_F(CudaDevice, NothingIsRecordedWhereThatIsNotWanted) {
  EXPECT_EQ(device().ReplayRows(100),
            (std::vector<int32_t>{1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 100}));
  EXPECT_EQ(device().ReplayRows(1), std::vector<int32_t>{1});
  EXPECT_EQ(device().ReplayRows(8), (std::vector<int32_t>{1, 2, 4, 8}));
  auto eager = MakeFloatBackend(true);
  ASSERT_TRUE(eager.ok()) << Message(eager.status());
  EXPECT_EQ((*eager)->device().ReplayRows(100), std::vector<int32_t>{});
  auto lane = (*eager)->device().MakeLane(1024);
  ASSERT_TRUE(lane.ok());
  int calls = 0;
  for (int i = 0; i < 3; ++i) (*lane)->Replay({1, 1, true}, [&] { ++calls; });
  EXPECT_EQ(calls, 3);
}

TEST_F(CudaDevice, ABodyThatFailsWhileItIsRecordedKeepsItsReason) {
  lane_->Replay({4, 4, true}, [&] { lane_->Fail(Internal("no such kernel")); });
  EXPECT_EQ(Message(lane_->status()), "no such kernel");
  lane_ = MakeLane();
  const Buffer x = Memory(64);
  lane_->Replay({4, 4, true}, [&] { backend_->ops().Add(*lane_, Row(x), Row(x)); });
  EXPECT_EQ(Message(lane_->Wait(lane_->Mark(), Soon())), "");
}

TEST_F(CudaDevice, ScratchIsTheSameAfterEachRewind) {
  const TensorView first = lane_->Scratch(DType::kBF16, Shape({3, 5}));
  const int64_t watermark = lane_->SaveScratch();
  const TensorView second = lane_->Scratch(DType::kF32, Shape({7}));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(second.data) % 64, 0u);
  lane_->RestoreScratch(watermark);
  EXPECT_EQ(lane_->Scratch(DType::kF32, Shape({7})).data, second.data);
  lane_->Rewind();
  EXPECT_EQ(lane_->Scratch(DType::kBF16, Shape({3, 5})).data, first.data);
  EXPECT_EQ(lane_->arena().data, first.data);
  EXPECT_EQ(lane_->arena().bytes(), int64_t{1} << 20);
}

TEST_F(CudaDevice, AnyOfManyMarksCanBeWaitedFor) {
  const Buffer x = Memory(64);
  std::vector<LaneMark> marks;
  for (int i = 0; i < 1000; ++i) {
    backend_->ops().Add(*lane_, Row(x), Row(x));
    marks.push_back(lane_->Mark());
    if (i > 0) {
      ASSERT_GT(marks.back().value, marks[marks.size() - 2].value);
    }
  }
  for (const size_t i : {size_t{999}, size_t{0}, size_t{500}}) {
    EXPECT_TRUE(lane_->Wait(marks[i], Soon()).ok());
  }
}

TEST_F(CudaDevice, WaitingEndsAtItsDeadline) {
  const Buffer from = Memory(kGiB);
  const Buffer to = Memory(kGiB);
  BusyLane(from, to);
  const LaneMark mark = lane_->Mark();
  const absl::Time begin = MonotonicNow();
  const absl::Status late = lane_->Wait(mark, begin + absl::Milliseconds(30));
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded) << Message(late);
  EXPECT_LT(MonotonicNow() - begin, absl::Milliseconds(300));
  EXPECT_TRUE(lane_->ok()) << "a deadline is no failure of the lane";
  EXPECT_EQ(Message(lane_->Wait(mark, Soon())), "");
}

TEST_F(CudaDevice, AFailureFromAnotherThreadEndsWaiting) {
  const Buffer from = Memory(kGiB);
  const Buffer to = Memory(kGiB);
  std::atomic<int> heard{0};
  lane_->SetFailureHook([&](const absl::Status&) { ++heard; });
  BusyLane(from, to);
  const LaneMark mark = lane_->Mark();
  const absl::Time begin = MonotonicNow();
  std::thread other([&] {
    (void)lane_->Wait(mark, begin + absl::Milliseconds(50));
    lane_->Fail(Unavailable("a peer is gone"));
    lane_->Fail(Unavailable("another one too"));
  });
  EXPECT_EQ(Message(lane_->Wait(mark, Soon())), "a peer is gone");
  EXPECT_LT(MonotonicNow() - begin, absl::Milliseconds(500));
  other.join();
  EXPECT_EQ(heard, 1);
  lane_->SetFailureHook([&](const absl::Status&) { ++heard; });
  EXPECT_EQ(heard, 2) << "a hook set after the failure runs at once";
  Upload(&kSeed, 4, to);
  EXPECT_EQ(Message(lane_->Wait(lane_->Mark(), Soon())), "a peer is gone");
  lane_.reset();  // waits for the copies, which use the memory
}

// As ranks of one process do, here on one GPU.
TEST_F(CudaDevice, BackendsOfSeveralThreadsDoNotDisturbEachOther) {
  std::vector<std::thread> threads;
  std::atomic<int> right{0};
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      OpsHarness harness(MakeFloatBackend(false));
      const DeviceTensor x = harness.Empty(DType::kF32, Shape({1, 100}));
      const DeviceTensor delta = harness.Empty(DType::kF32, Shape({1, 100}));
      double sum = 0;
      std::vector<std::vector<float>> staged;
      for (int step = 0; step < 200; ++step) {
        staged.emplace_back(100, static_cast<float>(t + step % 3));
        const std::vector<float>& values = staged.back();
        harness.device().Upload(harness.lane(), values.data(), 400, delta.view.data);
        harness.lane().Replay({1 + step % 4, 0, true},
                              [&] { harness.ops().Add(harness.lane(), delta.view, x.view); });
        sum += t + step % 3;
      }
      const naive::Matrix got = harness.Download(x.view);
      if (std::all_of(got.values.begin(), got.values.end(), [&](double v) { return v == sum; })) {
        ++right;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 3);
}

TEST_F(CudaDevice, AGpuThatIsNotThereIsNamed) {
  backend::BackendOptions options;
  options.device_index = 999;
  const absl::Status status = backend::MakeBackend("cuda", options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(Message(status).find("999"), std::string::npos) << Message(status);
}

TEST(CudaWithoutAGpu, IsRefusedInOneSentence) {
  if (GpuAvailable().ok()) GTEST_SKIP() << "there is a GPU here";
  const absl::Status status = MakeFloatBackend(false).status();
  // What --device auto takes for "no GPU here", as against a broken one.
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(Message(status).find("driver"), std::string::npos) << Message(status);
}

}  // namespace
}  // namespace polyreme::ops
