// Products with cublasLt on a GPU: every way of serving, the file of algorithms, recording.
#include "worker/backend/cuda/products.h"

#include <fmt/core.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <memory>

#include "parallel/base/file.h"
#include "tests/worker/cuda_array.h"

namespace polyreme::cuda {
namespace {

class CudaProducts : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    std::string pattern = std::filesystem::temp_directory_path() / "products-XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override {
    CudaTest::TearDown();
    if (!directory_.empty()) std::filesystem::remove_all(directory_);
  }

  std::unique_ptr<Products> MakeProducts(Element type, const std::string& directory) {
    absl::StatusOr<std::unique_ptr<Products>> made = Products::Make(type, {directory});
    EXPECT_TRUE(made.ok()) << made.status();
    return made.ok() ? *std::move(made) : nullptr;
  }
  // The only file of the directory.
  std::string File() {
    for (const auto& entry : std::filesystem::directory_iterator(directory_)) return entry.path();
    return "";
  }
  void CheckRun(Products& products, Element type, int64_t rows, int64_t n, int64_t k, Element out,
                int64_t offset = 0);

  std::string directory_;
};

void CudaProducts::CheckRun(Products& products, Element type, int64_t rows, int64_t n, int64_t k,
                            Element out, int64_t offset) {
  SCOPED_TRACE(fmt::format("{} T {} N {} K {} out {} offset {}", NameOf(DTypeOf(type)), rows, n, k,
                           NameOf(DTypeOf(out)), offset));
  const std::vector<double> x = RandomValues(random_, rows * k, type);
  const std::vector<double> w = RandomValues(random_, n * k, type);
  const DeviceArray device_x(type, x, offset);
  const DeviceArray device_w(type, w);
  const DeviceArray y(out, rows * n);
  const absl::Status status =
      products.Run(stream_, device_x.data(), rows, device_w.data(), n, k, y.data(), out);
  ASSERT_TRUE(status.ok()) << status;
  ExpectNear(y.Values(), NaiveProduct(x, w, rows, n, k), ToleranceOf(out));
}

TEST_F(CudaProducts, RunServesAnythingWithoutTuning) {
  for (const Element type : {Element::kF32, Element::kF16, Element::kBF16}) {
    const std::unique_ptr<Products> products = MakeProducts(type, "");
    ASSERT_NE(products, nullptr);
    for (const int64_t rows : {1, 2, 3, 17, 64, 300}) {
      for (const Element out : {type, Element::kF32}) {
        CheckRun(*products, type, rows, 128, 256, out);
        CheckRun(*products, type, rows, 83, 67, out);
        CheckRun(*products, type, rows, 5, 1, out);
        CheckRun(*products, type, rows, 128, 256, out, 1);  // x aligned to an element only
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(CudaProducts, TunesOnceAndKeepsTheChoices) {
  constexpr int64_t kN = 512;
  constexpr int64_t kK = 1024;
  const DeviceArray first(Element::kBF16, RandomValues(random_, kN * kK, Element::kBF16));
  const DeviceArray second(Element::kBF16, RandomValues(random_, kN * kK, Element::kBF16));
  const Products::Shape shapes[] = {{first.data(), kN, kK, 100, Element::kBF16},
                                    {second.data(), kN, kK, 600, Element::kBF16},
                                    {second.data(), kN, kK, 3, Element::kF32},
                                    {second.data(), 83, 67, 3, Element::kBF16}};
  std::string text;
  for (int start = 0; start < 3; ++start) {
    SCOPED_TRACE(start);
    const std::unique_ptr<Products> products = MakeProducts(Element::kBF16, directory_);
    ASSERT_NE(products, nullptr);
    const absl::Status tuned = products->Tune(stream_, shapes);
    ASSERT_TRUE(tuned.ok()) << tuned;
    const absl::StatusOr<std::string> now = ReadFile(File(), 1 << 20);
    ASSERT_TRUE(now.ok()) << now.status();
    // The second start reads, the third finds a damaged file and writes it anew.
    if (start == 1) {
      EXPECT_EQ(*now, text);
      std::ofstream(File()) << "{\"format\": ";
    }
    if (start == 2) {
      EXPECT_GT(now->size(), text.size() / 2);
    }
    text = *now;
    for (const int64_t rows : {1, 2, 3, 16, 100, 600, 700}) {
      CheckRun(*products, Element::kBF16, rows, kN, kK, Element::kBF16);
      CheckRun(*products, Element::kBF16, rows, kN, kK, Element::kF32);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(CudaProducts, RecordedRunsGiveTheSameBits) {
  constexpr int64_t kN = 256;
  constexpr int64_t kK = 512;
  const DeviceArray w(Element::kBF16, RandomValues(random_, kN * kK, Element::kBF16));
  const std::unique_ptr<Products> products = MakeProducts(Element::kBF16, "");
  ASSERT_NE(products, nullptr);
  const Products::Shape shapes[] = {{w.data(), kN, kK, 64, Element::kBF16}};
  ASSERT_TRUE(products->Tune(stream_, shapes).ok());
  for (const int64_t rows : {1, 2, 4, 8, 33, 64}) {
    SCOPED_TRACE(rows);
    const DeviceArray x(Element::kBF16, RandomValues(random_, rows * kK, Element::kBF16));
    const DeviceArray direct(Element::kBF16, rows * kN);
    const DeviceArray recorded(Element::kBF16, rows * kN);
    const auto run = [&](const DeviceArray& y) {
      return products->Run(stream_, x.data(), rows, w.data(), kN, kK, y.data(), Element::kBF16);
    };
    ASSERT_TRUE(run(direct).ok());
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    const absl::Status status = run(recorded);
    ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    for (int replay = 0; replay < 2; ++replay) {
      ASSERT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
      EXPECT_EQ(recorded.Values(), direct.Values());
    }
    (void)cudaGraphExecDestroy(exec);
    (void)cudaGraphDestroy(graph);
  }
}

}  // namespace
}  // namespace polyreme::cuda
