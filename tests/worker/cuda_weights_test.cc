// The CUDA packer against plain loops on the host: the same bits, whatever the source is made of.
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "worker/backend/cpu/float_formats.h"
#include "worker/backend/cuda/cuda_packer.h"
#include "worker/weights/dummy.h"
#include "worker/weights/floats.h"

namespace polyreme::cuda {
namespace {

using weights::Weight;
using weights::WeightSource;
struct ThisFile;

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
constexpr int64_t kGuardBytes = 64;

// Device memory as cudaMalloc gives it, filled with NaN: a packer may count on nothing.
absl::StatusOr<Buffer> AllocateOnDevice(int64_t bytes) {
  void* data = nullptr;
  const auto size = static_cast<size_t>(bytes + kGuardBytes);
  if (cudaMalloc(&data, size) != cudaSuccess) return ResourceExhausted("no {} bytes", bytes);
  (void)cudaMemset(data, 0xff, size);
  (void)cudaDeviceSynchronize();
  return Buffer(data, bytes, [](void* p) { (void)cudaFree(p); });
}

// The bytes on the device; fails the test if the packer wrote behind them.
std::vector<std::byte> Download(const Buffer& buffer) {
  std::vector<std::byte> bytes(static_cast<size_t>(buffer.bytes() + kGuardBytes));
  const cudaError_t error =
      cudaMemcpy(bytes.data(), buffer.data(), bytes.size(), cudaMemcpyDeviceToHost);
  EXPECT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
  for (size_t i = static_cast<size_t>(buffer.bytes()); i < bytes.size(); ++i) {
    EXPECT_EQ(bytes[i], std::byte{0xff}) << "byte " << i << " behind the weight was written";
  }
  bytes.resize(static_cast<size_t>(buffer.bytes()));
  return bytes;
}

void AppendAs(DType dtype, float value, std::vector<std::byte>& out) {
  std::byte bytes[4];
  uint16_t bits = 0;
  if (dtype == DType::kF32) {
    std::memcpy(bytes, &value, 4);
  } else {
    bits = dtype == DType::kF16 ? backend::cpu::ToF16<ThisFile>(value)
                                : backend::cpu::ToBf16<ThisFile>(value);
    std::memcpy(bytes, &bits, 2);
  }
  out.insert(out.end(), bytes, bytes + SizeOf(dtype));
}

// Values that make rounding work: ties, subnormals, both zeros, large ones that fit float16.
std::vector<std::byte> HostValues(DType dtype, int64_t count) {
  const float odd[] = {0.0f,
                       -0.0f,
                       1.0f + 0x1p-9f,
                       1.0f + 0x1p-8f + 0x1p-7f,
                       1.0f + 0x1p-11f,
                       0x1p-24f,
                       0x1.8p-24f,
                       -0x1p-20f,
                       65504.0f,
                       -1234.5678f,
                       0x1p-14f,
                       3e-5f};
  std::vector<std::byte> bytes;
  bytes.reserve(static_cast<size_t>(count * SizeOf(dtype)));
  for (int64_t i = 0; i < count; ++i) {
    const float value = i % 7 == 0 ? odd[static_cast<size_t>(i / 7 % 12)]
                                   : 3.0f * weights::DummyUniform(5, static_cast<uint64_t>(i));
    // 65504 is no bfloat16; the nearest would be 65536, which is no float16.
    const bool too_large = dtype == DType::kBF16 && std::fabs(value) > 60000.0f;
    AppendAs(dtype, too_large ? 60000.0f : value, bytes);
  }
  return bytes;
}

// The weight as plain loops make it: [rows, cols] of `to`.
std::vector<std::byte> Expected(const WeightSource& source, DType to) {
  std::vector<std::byte> out;
  std::vector<std::byte> made(static_cast<size_t>(source.cols * SizeOf(source.dtype)));
  for (const WeightSource::RowBlock& block : source.blocks) {
    for (int64_t row = 0; row < block.rows; ++row) {
      const std::byte* from = made.data();
      if (block.data != nullptr) {
        from = block.data + row * block.row_stride_bytes;
      } else if (block.generated.has_value()) {
        const WeightSource::Generated& g = *block.generated;
        const int64_t first = (g.first_row + row) * g.full_cols + g.first_col;
        weights::FillDummy(g.values, source.dtype, static_cast<uint64_t>(first), source.cols,
                           made.data());
      } else {
        std::fill(made.begin(), made.end(), std::byte{0});
      }
      if (to == source.dtype) {
        out.insert(out.end(), from, from + made.size());
        continue;
      }
      std::vector<float> values;
      weights::AppendAsFloats(source.dtype, from, source.cols, values);
      for (const float value : values) AppendAs(to, value, out);
    }
  }
  return out;
}

class CudaWeights : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
      GTEST_SKIP() << "no GPU: " << cudaGetErrorString(error);
    }
  }
  std::unique_ptr<weights::WeightPacker> Packer(DType dtype) {
    auto packer = MakeCudaPacker(0, dtype, AllocateOnDevice);
    EXPECT_TRUE(packer.ok()) << packer.status();
    return packer.ok() ? *std::move(packer) : nullptr;
  }
  void ExpectPacked(weights::WeightPacker& packer, const WeightSource& source, DType to,
                    const std::string& what) {
    const absl::StatusOr<Weight> weight = packer.Pack(source);
    ASSERT_TRUE(weight.ok()) << what << ": " << weight.status();
    EXPECT_EQ(weight->dtype, to) << what;
    EXPECT_EQ(weight->cols, source.cols) << what;
    const std::vector<std::byte> expected = Expected(source, to);
    const std::vector<std::byte> got = Download(weight->bytes);
    ASSERT_EQ(got.size(), expected.size()) << what;
    const auto [at, unused] = std::mismatch(got.begin(), got.end(), expected.begin());
    if (at == got.end()) return;
    const int64_t element = (at - got.begin()) / SizeOf(to);
    ADD_FAILURE() << what << ": row " << element / source.cols << " of " << weight->rows
                  << ", column " << element % source.cols << " of " << source.cols << " differs";
  }
};

std::string Arrow(DType from, DType to) {
  return fmt::format("{} -> {}", NameOf(from), NameOf(to));
}

TEST_F(CudaWeights, EveryTypeAndEveryKindOfRows) {
  for (const DType from : kTypes) {
    const int64_t element = SizeOf(from);
    const std::vector<std::byte> values = HostValues(from, 400 * 129);
    std::vector<std::byte> shifted(values.size() + 1);  // no alignment is promised
    std::copy(values.begin(), values.end(), shifted.begin() + 1);
    WeightSource source;
    source.cols = 129;
    source.dtype = from;
    source.blocks.push_back(
        {.data = shifted.data() + 1, .rows = 37, .row_stride_bytes = 129 * element});
    source.blocks.push_back({.rows = 3});
    source.blocks.push_back(
        {.data = shifted.data() + 1 + 5 * element, .rows = 101, .row_stride_bytes = 300 * element});
    source.blocks.push_back(
        {.rows = 11,
         .generated = WeightSource::Generated{
             .values = {77, 0.25f, 0.0f}, .first_row = 9, .first_col = 130, .full_cols = 1000}});
    for (const DType to : kTypes) {
      const auto packer = Packer(to);
      ASSERT_NE(packer, nullptr);
      ExpectPacked(*packer, source, to, Arrow(from, to));
      packer->ReleaseStaging();
      ExpectPacked(*packer, source, to, Arrow(from, to) + ", staging taken again");
    }
  }
}

// Rows that end within pieces, several pieces for each thread, rows longer than a piece.
TEST_F(CudaWeights, LargeOnesInPieces) {
  const std::vector<std::byte> values = HostValues(DType::kF32, 40'000'000);
  const auto packer = Packer(DType::kBF16);
  ASSERT_NE(packer, nullptr);
  WeightSource source;
  source.dtype = DType::kF32;
  source.cols = 100'003;
  source.blocks.push_back({.data = values.data(), .rows = 399, .row_stride_bytes = 100'003 * 4});
  ExpectPacked(*packer, source, DType::kBF16, "contiguous");
  source.cols = 60'001;
  source.blocks[0].data += 40'000 * 4;
  ExpectPacked(*packer, source, DType::kBF16, "most columns");
  source.cols = 30'001;
  ExpectPacked(*packer, source, DType::kBF16, "few columns");
  source.cols = 5'000'011;
  source.blocks[0] = {.data = values.data(), .rows = 7, .row_stride_bytes = 5'000'011 * 4};
  ExpectPacked(*packer, source, DType::kBF16, "rows longer than a piece");
  const auto same = Packer(DType::kF32);
  ASSERT_NE(same, nullptr);
  ExpectPacked(*same, source, DType::kF32, "unconverted");
}

TEST_F(CudaWeights, DummyValuesAreTheCpus) {
  for (const DType stored : kTypes) {
    for (const DType to : kTypes) {
      const auto packer = Packer(to);
      ASSERT_NE(packer, nullptr);
      for (const weights::DummyValues& values :
           {weights::DummyValues{.key = 1, .scale = 0.024f, .offset = 0.0f},
            weights::DummyValues{.key = ~uint64_t{0}, .scale = 0.1f, .offset = 1.0f},
            weights::DummyValues{.key = 42, .scale = 1e-4f, .offset = 0.0f}}) {
        WeightSource source;
        source.dtype = stored;
        source.cols = 511;
        source.blocks.push_back(
            {.rows = 4099,
             .generated = WeightSource::Generated{.values = values,
                                                  .first_row = int64_t{1} << 20,  // beyond 2^32
                                                  .first_col = 7,
                                                  .full_cols = 5120}});
        ExpectPacked(*packer, source, to, Arrow(stored, to));
      }
    }
  }
}

TEST_F(CudaWeights, WhatDoesNotFitFloat16IsCounted) {
  std::vector<float> values(1000, 1.0f);
  values[3] = 1e6f;
  values[500] = -65520.0f;
  values[998] = std::numeric_limits<float>::infinity();  // so in the checkpoint: not our doing
  values[999] = std::numeric_limits<float>::quiet_NaN();
  WeightSource source;
  source.cols = 100;
  source.blocks.push_back({.data = reinterpret_cast<const std::byte*>(values.data()),
                           .rows = 10,
                           .row_stride_bytes = 400});
  const auto packer = Packer(DType::kF16);
  ASSERT_NE(packer, nullptr);
  for (int i = 0; i < 2; ++i) {
    const absl::StatusOr<Weight> weight = packer->Pack(source);
    EXPECT_TRUE(absl::IsInvalidArgument(weight.status())) << weight.status();
    EXPECT_THAT(Message(weight.status()), testing::HasSubstr("2 values do not fit float16"));
  }
  values[3] = values[500] = 65504.0f;
  EXPECT_TRUE(packer->Pack(source).ok()) << "the counter starts anew";
  const auto wide = Packer(DType::kBF16);
  ASSERT_NE(wide, nullptr);
  EXPECT_TRUE(wide->Pack(source).ok());
}

TEST_F(CudaWeights, VectorsAreFloat32) {
  const auto packer = Packer(DType::kF16);
  ASSERT_NE(packer, nullptr);
  const std::vector<float> values = {1.0f, -2.5f, 1e30f, 0x1p-140f};
  const absl::StatusOr<Buffer> buffer = packer->PackVector(values);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  const std::vector<std::byte> got = Download(*buffer);
  ASSERT_EQ(got.size(), 16u);
  EXPECT_EQ(std::memcmp(got.data(), values.data(), 16), 0);
  EXPECT_TRUE(packer->PackVector({}).ok());
}

TEST_F(CudaWeights, ErrorsArePassedOn) {
  EXPECT_TRUE(absl::IsInvalidArgument(MakeCudaPacker(0, DType::kI32, AllocateOnDevice).status()));
  const auto none = [](int64_t bytes) -> absl::StatusOr<Buffer> {
    if (bytes < 1000) return AllocateOnDevice(bytes);
    return ResourceExhausted("asked for {} bytes", bytes);
  };
  const auto packer = MakeCudaPacker(0, DType::kF32, none);
  ASSERT_TRUE(packer.ok()) << packer.status();
  WeightSource source;
  source.cols = 1000;
  source.blocks.push_back({.rows = 2});
  EXPECT_THAT(Message((*packer)->Pack(source).status()),
              testing::HasSubstr("asked for 8000 bytes"));
  source.dtype = DType::kI8;
  EXPECT_TRUE(absl::IsInvalidArgument((*packer)->Pack(source).status()));
}

double SecondsOf(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Bytes a second of copies from pinned memory, 256 MiB at a time.
double PlainRate(int64_t bytes) {
  constexpr int64_t kCopy = int64_t{256} << 20;
  void *host = nullptr, *device = nullptr;
  EXPECT_EQ(cudaHostAlloc(&host, kCopy, cudaHostAllocDefault), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&device, kCopy), cudaSuccess);
  std::memset(host, 1, kCopy);
  const auto copy = [&] {
    EXPECT_EQ(cudaMemcpy(device, host, kCopy, cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  };
  copy();
  const double seconds = SecondsOf([&] {
    for (int64_t done = 0; done < bytes; done += kCopy) copy();
  });
  (void)cudaFree(device);
  (void)cudaFreeHost(host);
  return static_cast<double>(bytes) / seconds;
}

// Information for the log: 4 GiB of a mapped file in the page cache against plain pinned copies.
TEST_F(CudaWeights, UploadRate) {
  struct sysinfo info = {};
  ASSERT_EQ(::sysinfo(&info), 0);
  constexpr int64_t kBytes = int64_t{4} << 30;
  if (static_cast<int64_t>(info.freeram * info.mem_unit) < 2 * kBytes) {
    GTEST_SKIP() << "expected 8 GiB of free memory";
  }
  const int file = ::memfd_create("weights", MFD_CLOEXEC);
  ASSERT_GE(file, 0);
  ASSERT_EQ(::ftruncate(file, kBytes), 0);
  const auto map = [&] {
    return ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  };
  void* data = map();
  ASSERT_NE(data, MAP_FAILED);
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < 16; ++i) {
    threads.emplace_back([&, i] {
      std::memset(static_cast<std::byte*>(data) + i * (kBytes / 16), 0x3c, kBytes / 16);
    });
  }
  for (std::thread& thread : threads) thread.join();

  const double plain = PlainRate(kBytes);
  fmt::print("plain copies from pinned memory   {:6.1f} GB/s\n", plain / 1e9);
  struct Case {
    const char* name;
    DType from;
    int64_t cut;  // 1 / cut of the columns
  };
  for (const Case& row : {Case{"bf16, all columns", DType::kBF16, 1},
                          Case{"bf16, half of the columns", DType::kBF16, 2},
                          Case{"bf16, an eighth of the columns", DType::kBF16, 8},
                          Case{"float32 to bf16, all columns", DType::kF32, 1}}) {
    ::munmap(data, kBytes);  // as a file that was just opened: page tables are empty
    data = map();
    ASSERT_NE(data, MAP_FAILED);
    const int64_t full = 16384 / SizeOf(row.from);
    WeightSource source;
    source.dtype = row.from;
    source.cols = full / row.cut;
    source.blocks.push_back({.data = static_cast<const std::byte*>(data),
                             .rows = kBytes / 16384,
                             .row_stride_bytes = 16384});
    const auto packer = Packer(DType::kBF16);
    ASSERT_NE(packer, nullptr);
    WeightSource first = source;
    first.blocks[0].rows = 8192;  // takes the pinned memory
    EXPECT_TRUE(packer->Pack(first).ok());
    const double seconds = SecondsOf([&] { EXPECT_TRUE(packer->Pack(source).ok()); });
    const double rate = static_cast<double>(kBytes / row.cut) / seconds;
    fmt::print("{:<33} {:6.1f} GB/s, {:.2f} of plain copies\n", row.name, rate / 1e9, rate / plain);
  }
  ::munmap(data, kBytes);
  ::close(file);
}

}  // namespace
}  // namespace polyreme::cuda
