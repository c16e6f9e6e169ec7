// The CPU backend beneath its ops: threads, memory, the lane, the 16-bit formats, the table of
// backends.
#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "tests/support/naive_ops.h"
#include "worker/backend/cpu/cpu_backend.h"
#include "worker/backend/cpu/cpu_device.h"
#include "worker/backend/cpu/float_formats.h"
#include "worker/backend/cpu/thread_pool.h"

namespace polyreme::backend {
namespace {

TEST(ThreadPool, RunsEachIndexExactlyOnceInLoopAfterLoop) {
  for (const int32_t threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (int64_t count = 0; count < 300; ++count) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
      pool.ParallelFor(count, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
      for (const std::atomic<int>& run : runs) ASSERT_EQ(run, 1);
    }
  }
}

TEST(ThreadPool, WhatABodyWroteIsSeenAfterTheLoop) {
  ThreadPool pool(3);
  std::vector<int64_t> values(64);
  for (int64_t round = 1; round <= 2000; ++round) {
    pool.ParallelFor(64, [&](int64_t i) { values[static_cast<size_t>(i)] += i; });
    ASSERT_EQ(std::accumulate(values.begin(), values.end(), int64_t{0}), round * 64 * 63 / 2);
  }
}

TEST(CpuDevice, GivesZeroedAlignedMemory) {
  CpuDevice device;
  for (const int64_t bytes : {int64_t{1}, int64_t{4097}, (int64_t{3} << 20) + 5}) {
    const absl::StatusOr<Buffer> buffer = device.Allocate(bytes);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(buffer->bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
    const auto* data = static_cast<const char*>(buffer->data());
    EXPECT_TRUE(std::all_of(data, data + bytes, [](char c) { return c == 0; }));
  }
}

TEST(CpuDevice, RefusesWhatTheMachineDoesNotHave) {
  CpuDevice device;
  const int64_t bytes = int64_t{1} << 55;
  EXPECT_LT(device.FreeBytes(), bytes);
  EXPECT_GT(device.FreeBytes(), 0);
  const absl::StatusOr<Buffer> buffer = device.Allocate(bytes);
  EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(Message(buffer.status()).find(std::to_string(bytes)), std::string::npos);
}

TEST(CpuLane, ScratchIsAlignedAndGivenBackToAWatermark) {
  CpuDevice device;
  const std::unique_ptr<Lane> lane = device.MakeLane(1024).value();
  const TensorView a = lane->Scratch(DType::kF32, Shape({3}));
  const int64_t watermark = lane->SaveScratch();
  const TensorView b = lane->Scratch(DType::kBF16, Shape({5, 7}));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data) % 64, 0u);
  EXPECT_NE(a.data, b.data);
  lane->RestoreScratch(watermark);
  EXPECT_EQ(lane->Scratch(DType::kU8, Shape({1024 - 64})).data, b.data);
  EXPECT_DEATH(lane->Scratch(DType::kU8, Shape({1})), "exceeds the arena");
  lane->Rewind();
  EXPECT_EQ(lane->Scratch(DType::kF32, Shape({3})).data, a.data);
}

TEST(CpuLane, KeepsTheFirstErrorAndRunsTheHookOnce) {
  CpuDevice device;
  const std::unique_ptr<Lane> lane = device.MakeLane(0).value();
  int hooks = 0;
  lane->SetFailureHook([&](const absl::Status& why) {
    ++hooks;
    EXPECT_EQ(Message(why), "first");
  });
  EXPECT_TRUE(lane->ok());
  EXPECT_TRUE(lane->Wait(lane->Mark(), absl::InfiniteFuture()).ok());
  lane->Fail(Unavailable("first"));
  lane->Fail(Internal("second"));
  EXPECT_FALSE(lane->ok());
  EXPECT_EQ(lane->status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(lane->Wait(lane->Mark(), absl::InfiniteFuture()), lane->status());
  EXPECT_EQ(hooks, 1);
}

TEST(FloatFormats, EachHalfIsReadAsItsDefinitionSays) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      const bool is_f16 = dtype == DType::kF16;
      const double want =
          naive::FromBytes(dtype, absl::MakeSpan(reinterpret_cast<const std::byte*>(&half), 2))[0];
      const float got = is_f16 ? cpu::FromF16<void>(half) : cpu::FromBf16<void>(half);
      const uint16_t back = is_f16 ? cpu::ToF16<void>(got) : cpu::ToBf16<void>(got);
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(got));
        const float again = is_f16 ? cpu::FromF16<void>(back) : cpu::FromBf16<void>(back);
        ASSERT_TRUE(std::isnan(again));
      } else {
        ASSERT_EQ(static_cast<double>(got), want);
        ASSERT_EQ(back, half);
      }
    }
  }
}

TEST(FloatFormats, WritingRoundsToNearestEven) {
  std::mt19937 random(20261124);
  for (int i = 0; i < 300000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (!std::isfinite(value)) continue;
    ASSERT_EQ(static_cast<double>(cpu::FromBf16<void>(cpu::ToBf16<void>(value))),
              naive::RoundTo(DType::kBF16, value));
    const float small =
        std::ldexp(std::fmod(value, 1.0f) + 1.0f, static_cast<int>(random() % 48) - 30);
    ASSERT_EQ(static_cast<double>(cpu::FromF16<void>(cpu::ToF16<void>(small))),
              naive::RoundTo(DType::kF16, small));
  }
}

TEST(Backends, AnUnknownNameListsTheKnownOnes) {
  const auto backend = MakeBackend("abacus", {});
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Message(backend.status()), "expected a backend of cpu, cuda, got 'abacus'");
  EXPECT_EQ(MakeBackend("cpu", {.num_threads = 0, .device_index = 0}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Packer, RefusesATypeItCannotHold) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend({}).value();
  weights::WeightSource source;
  source.cols = 4;
  source.dtype = DType::kI8;
  EXPECT_EQ(backend->packer().Pack(source).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace polyreme::backend
