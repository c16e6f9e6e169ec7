// Paths of kernels that the ops suite does not reach: each variant of GEMV, widths of real models,
// elements that are not aligned.
#include <fmt/core.h>

#include "tests/worker/cuda_array.h"
#include "worker/backend/cuda/elementwise.h"
#include "worker/backend/cuda/gemv.h"

namespace polyreme::cuda {
namespace {

constexpr Element kElements[] = {Element::kF32, Element::kF16, Element::kBF16};

class CudaKernels : public CudaTest {};

struct ProductSize {
  int64_t n;
  int64_t k;
};

TEST_F(CudaKernels, GemvOfEachVariantAndType) {
  // Depths: a part of a warp, one step, several with a narrow last one, whole rounds of loads.
  const ProductSize sizes[] = {{1, 8},     {3, 256},    {17, 264}, {50, 1000},
                               {33, 2560}, {129, 5120}, {5, 13824}};
  for (const auto& [n, k] : sizes) {
    for (const Element type : {Element::kF16, Element::kBF16}) {
      const std::vector<double> w = RandomValues(random_, n * k, type);
      const DeviceArray device_w(type, w);
      for (int64_t rows = 1; rows <= kGemvMaxRows; ++rows) {
        const std::vector<double> x = RandomValues(random_, rows * k, type);
        const DeviceArray device_x(type, x);
        const std::vector<double> want = NaiveProduct(x, w, rows, n, k);
        ASSERT_TRUE(GemvTakes(type, device_x.data(), rows, device_w.data(), k));
        for (int variant = 0; variant < kGemvVariants; ++variant) {
          for (const Element out : {type, Element::kF32}) {
            SCOPED_TRACE(fmt::format("N {} K {} {} T {} variant {} out {}", n, k,
                                     NameOf(DTypeOf(type)), rows, variant, NameOf(DTypeOf(out))));
            const DeviceArray y(out, rows * n);
            ASSERT_EQ(Gemv(stream_, variant, type, device_x.data(), rows, device_w.data(), n, k,
                           y.data(), out),
                      cudaSuccess);
            ExpectNear(y.Values(), want, ToleranceOf(out));
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST_F(CudaKernels, GemvSaysWhatItDoesNotTake) {
  const DeviceArray x(Element::kBF16, 1024);
  void* const at = x.data();
  void* const odd = static_cast<std::byte*>(at) + 8;
  EXPECT_TRUE(GemvTakes(Element::kBF16, at, 2, at, 64));
  EXPECT_FALSE(GemvTakes(Element::kBF16, odd, 2, at, 64));
  EXPECT_FALSE(GemvTakes(Element::kBF16, at, 2, odd, 64));
  EXPECT_FALSE(GemvTakes(Element::kBF16, at, 3, at, 64));
  EXPECT_FALSE(GemvTakes(Element::kBF16, at, 0, at, 64));
  EXPECT_FALSE(GemvTakes(Element::kBF16, at, 1, at, 67));
  EXPECT_FALSE(GemvTakes(Element::kF32, at, 1, at, 64));
  EXPECT_EQ(Gemv(stream_, 0, Element::kF32, at, 1, at, 1, 64, at, Element::kF32),
            cudaErrorInvalidValue);
  EXPECT_EQ(Gemv(stream_, kGemvVariants, Element::kBF16, at, 1, at, 1, 64, at, Element::kBF16),
            cudaErrorInvalidValue);
}

TEST_F(CudaKernels, PlainProductOfAnySizeAndAlignment) {
  for (const Element type : kElements) {
    for (const int64_t rows : {1, 16, 37}) {
      for (const auto& [n, k] : {ProductSize{83, 67}, ProductSize{1, 1}, ProductSize{16, 16}}) {
        for (const Element out : {type, Element::kF32}) {
          SCOPED_TRACE(fmt::format("{} T {} N {} K {}", NameOf(DTypeOf(type)), rows, n, k));
          const std::vector<double> x = RandomValues(random_, rows * k, type);
          const std::vector<double> w = RandomValues(random_, n * k, type);
          const DeviceArray device_x(type, x, 1);
          const DeviceArray device_w(type, w, 3);
          const DeviceArray y(out, rows * n, 1);
          ASSERT_EQ(PlainProduct(stream_, type, device_x.data(), rows, device_w.data(), n, k,
                                 y.data(), out),
                    cudaSuccess);
          ExpectNear(y.Values(), NaiveProduct(x, w, rows, n, k), ToleranceOf(out));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(CudaKernels, AddAndNormOfNarrowWideAndUnalignedRows) {
  // One pack a thread, two, more than registers hold, and no whole packs.
  for (const int64_t width : {8, 5120, 8192, 16384, 16392, 33000, 5121}) {
    for (const Element type : kElements) {
      for (const int64_t offset : {0, 1}) {
        SCOPED_TRACE(fmt::format("{} E {} offset {}", NameOf(DTypeOf(type)), width, offset));
        constexpr int64_t kRows = 3;
        const std::vector<double> x = RandomValues(random_, kRows * width, type);
        const std::vector<double> delta = RandomValues(random_, kRows * width, type);
        const std::vector<double> gain = RandomValues(random_, width, Element::kF32);
        std::vector<double> sums = x;
        std::vector<double> want = x;
        for (int64_t r = 0; r < kRows; ++r) {
          double squares = 0;
          for (int64_t c = r * width; c < (r + 1) * width; ++c) {
            const auto i = static_cast<size_t>(c);
            sums[i] = naive::RoundTo(DTypeOf(type), x[i] + delta[i]);
            squares += sums[i] * sums[i];
          }
          const double root = std::sqrt(squares / static_cast<double>(width) + 1e-5);
          for (int64_t c = 0; c < width; ++c) {
            const auto i = static_cast<size_t>(r * width + c);
            want[i] = sums[i] / root * gain[static_cast<size_t>(c)];
          }
        }
        const DeviceArray device_x(type, x, offset);
        const DeviceArray device_delta(type, delta, offset);
        const DeviceArray device_gain(Element::kF32, gain);
        const DeviceArray y(type, kRows * width, offset);
        ASSERT_EQ(AddRmsNorm(stream_, type, device_delta.data(), device_x.data(),
                             static_cast<const float*>(device_gain.data()), 1e-5f, kRows, width,
                             y.data()),
                  cudaSuccess);
        ExpectNear(device_x.Values(), sums, ToleranceOf(type));
        ExpectNear(y.Values(), want, ToleranceOf(type));
        const DeviceArray normed(type, kRows * width, offset);
        ASSERT_EQ(
            RmsNorm(stream_, type, device_x.data(), static_cast<const float*>(device_gain.data()),
                    1e-5f, kRows, width, normed.data()),
            cudaSuccess);
        EXPECT_EQ(normed.Values(), y.Values());
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(CudaKernels, PaddingRowsStoreNothing) {
  const Heads heads{2, 1, 16};
  const DeviceArray cos_sin(Element::kF32, RandomValues(random_, 4 * 16, Element::kF32));
  const std::vector<double> qkv = RandomValues(random_, 2 * heads.columns(), Element::kBF16);
  const DeviceArray device_qkv(Element::kBF16, qkv);
  const DeviceArray keys(Element::kBF16, std::vector<double>(2 * 4 * 16, 7));
  const DeviceArray values(Element::kBF16, std::vector<double>(2 * 4 * 16, 7));
  // positions, token_rows, row_slots of two tokens; the table of one slot: block 1.
  const int32_t host[] = {-1, 2, 0, 1, 0, 0, 1};
  const DeviceArray ints(Element::kF32, 7);
  ASSERT_EQ(cudaMemcpy(ints.data(), host, sizeof(host), cudaMemcpyHostToDevice), cudaSuccess);
  const auto* at = static_cast<const int32_t*>(ints.data());
  Step step;
  step.num_tokens = 2;
  step.positions = at;
  step.token_rows = at + 2;
  step.row_slots = at + 4;
  step.block_table = at + 6;
  step.table_stride = 1;
  step.tokens_per_block = 4;
  ASSERT_EQ(RotateAndStore(stream_, Element::kBF16, step, heads,
                           static_cast<const float*>(cos_sin.data()), device_qkv.data(),
                           {keys.data(), values.data(), Element::kBF16}),
            cudaSuccess);
  const std::vector<double> stored = values.Values();
  for (size_t i = 0; i < stored.size(); ++i) {
    const bool written = i / 16 == 4 + 2;  // block 1, position 2
    const double want = written ? qkv[static_cast<size_t>(heads.columns()) + 48 + i % 16] : 7;
    EXPECT_EQ(stored[i], want) << i;
  }
}

}  // namespace
}  // namespace polyreme::cuda
