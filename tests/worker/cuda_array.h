// Device memory with doubles on the host's side, for tests of the GPU plugin's own code.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "tests/support/naive_ops.h"
#include "worker/backend/cuda/element.h"

namespace polyreme::cuda {

inline DType DTypeOf(Element element) {
  if (element == Element::kF32) return DType::kF32;
  return element == Element::kF16 ? DType::kF16 : DType::kBF16;
}

// Numbers from -1 to 1 that `type` holds exactly.
inline std::vector<double> RandomValues(std::mt19937& random, int64_t count, Element type) {
  std::uniform_real_distribution<double> distribution(-1, 1);
  std::vector<double> values(static_cast<size_t>(count));
  for (double& value : values) value = naive::RoundTo(DTypeOf(type), distribution(random));
  return values;
}

class DeviceArray {
 public:
  // All NaN, so that what no kernel writes is noticed. `offset` elements are left before it, for
  // addresses that are aligned to an element only.
  DeviceArray(Element type, int64_t count, int64_t offset = 0)
      : type_(type), count_(count), offset_(offset * SizeOf(type)) {
    const auto bytes = static_cast<size_t>(count * SizeOf(type) + offset_);
    EXPECT_EQ(cudaMalloc(&memory_, bytes + 1), cudaSuccess);
    EXPECT_EQ(cudaMemset(memory_, 0xff, bytes), cudaSuccess);
  }
  DeviceArray(Element type, const std::vector<double>& values, int64_t offset = 0)
      : DeviceArray(type, static_cast<int64_t>(values.size()), offset) {
    const std::vector<std::byte> bytes = naive::ToBytes(DTypeOf(type), values);
    EXPECT_EQ(cudaMemcpy(data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~DeviceArray() { (void)cudaFree(memory_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  void* data() const { return static_cast<std::byte*>(memory_) + offset_; }
  // Waits for all work on the device.
  std::vector<double> Values() const {
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    std::vector<std::byte> bytes(static_cast<size_t>(count_ * SizeOf(type_)));
    EXPECT_EQ(cudaMemcpy(bytes.data(), data(), bytes.size(), cudaMemcpyDeviceToHost), cudaSuccess);
    return naive::FromBytes(DTypeOf(type_), bytes);
  }

 private:
  Element type_;
  int64_t count_;
  int64_t offset_;  // bytes
  void* memory_ = nullptr;
};

// y [T, N] = x [T, K] · wᵀ in double.
inline std::vector<double> NaiveProduct(const std::vector<double>& x, const std::vector<double>& w,
                                        int64_t T, int64_t N, int64_t K) {
  std::vector<double> y;
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < K; ++k) {
        sum += x[static_cast<size_t>(t * K + k)] * w[static_cast<size_t>(n * K + k)];
      }
      y.push_back(sum);
    }
  }
  return y;
}

// Each within `tolerance` of itself and of the root of the mean square; names the first that is
// not.
inline void ExpectNear(const std::vector<double>& got, const std::vector<double>& want,
                       double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  double squares = 0;
  for (const double value : want) squares += value * value;
  const double root = std::sqrt(squares / static_cast<double>(want.size()));
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_LE(std::abs(got[i] - want[i]), tolerance * (std::abs(want[i]) + root))
        << "element " << i << " of " << want.size() << ": got " << got[i] << ", want " << want[i];
  }
}

inline double ToleranceOf(Element type) {
  if (type == Element::kF32) return 1e-5;
  return type == Element::kF16 ? 1e-3 : 8e-3;
}

// Skips where there is no GPU.
class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) GTEST_SKIP() << cudaGetErrorString(error);
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  void TearDown() override {
    if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  }
  std::mt19937 random_{20261122};
  cudaStream_t stream_ = nullptr;
};

}  // namespace polyreme::cuda
