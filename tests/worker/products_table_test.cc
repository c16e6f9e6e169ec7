#include "worker/backend/cuda/products_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace polyreme::cuda {
namespace {

using ::testing::HasSubstr;

constexpr char kIdentity[] = "NVIDIA H200, sm_90, 132 multiprocessors, driver 13.0, cublasLt 13.1";
const ProductKey kDown = {DType::kBF16, DType::kBF16, 5120, 27648, 1};
const ProductKey kHead = {DType::kF16, DType::kF32, 76800, 5120, 16384};
const ProductKey kOdd = {DType::kF32, DType::kF32, 83, 67, 24};

ProductTable Example() {
  ProductTable table;
  table[kDown] = {ProductChoice::Kind::kGemv, 3, {}, 68.9};
  table[kHead] = {
      ProductChoice::Kind::kCublas, 0, {0, ~uint64_t{0}, 0x0123456789abcdef, 3, 4, 5, 6, 7}, 12};
  table[kOdd] = {};
  return table;
}

TEST(ProductTable, BucketsRoundUp) {
  for (size_t i = 0; i < kRowBuckets.size(); ++i) {
    EXPECT_EQ(BucketOf(kRowBuckets[i]), i);
    if (i > 0) {
      EXPECT_EQ(BucketOf(kRowBuckets[i - 1] + 1), i);
      EXPECT_LT(kRowBuckets[i - 1], kRowBuckets[i]);
    }
  }
  EXPECT_EQ(kRowBuckets[BucketOf(3)], 4);
  EXPECT_EQ(BucketOf(100000), kRowBuckets.size() - 1);
}

TEST(ProductTable, ComesBackAsItWasWritten) {
  const std::string text = ToText(Example(), kIdentity);
  const absl::StatusOr<ProductTable> table = ParseProductTable(text, kIdentity);
  ASSERT_TRUE(table.ok()) << table.status();
  ASSERT_EQ(table->size(), 3u);
  EXPECT_EQ(table->at(kDown).kind, ProductChoice::Kind::kGemv);
  EXPECT_EQ(table->at(kDown).variant, 3);
  EXPECT_EQ(table->at(kDown).microseconds, 68.9);
  EXPECT_EQ(table->at(kHead).kind, ProductChoice::Kind::kCublas);
  EXPECT_EQ(table->at(kHead).algorithm, Example()[kHead].algorithm);
  EXPECT_EQ(table->at(kOdd).kind, ProductChoice::Kind::kPlain);
  EXPECT_EQ(ToText(*table, kIdentity), text);
}

TEST(ProductTable, RefusesAnotherGpusFile) {
  const std::string text = ToText(Example(), "NVIDIA A100");
  const absl::StatusOr<ProductTable> table = ParseProductTable(text, kIdentity);
  EXPECT_EQ(table.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(table.status()), HasSubstr("got one for 'NVIDIA A100'"));
}

TEST(ProductTable, RefusesWhatIsNoTable) {
  const std::string text = ToText(Example(), kIdentity);
  for (const std::string& damaged :
       {std::string(), std::string("[]"), std::string("{}"), std::string("\x00\x01", 2),
        text.substr(0, text.size() / 2), std::string(R"({"format": 2})"),
        std::string(R"({"format": 1, "identity": ")") + kIdentity + R"("})",
        std::string(R"({"format": 1, "identity": ")") + kIdentity + R"(", "products": 3})"}) {
    EXPECT_EQ(ParseProductTable(damaged, kIdentity).status().code(),
              absl::StatusCode::kInvalidArgument)
        << damaged;
  }
}

TEST(ProductTable, LeavesOutEntriesThatMakeNoSense) {
  const std::string good =
      R"({"type": "bfloat16", "out": "float32", "n": 8, "k": 16, "rows": 4, "kind": "plain"})";
  std::string entries = good;
  for (
      const std::string bad : {
          R"(3)",
          R"({"type": "bfloat16", "out": "float32", "n": 8, "k": 16, "rows": 4})",
          R"({"type": "bf99", "out": "float32", "n": 8, "k": 16, "rows": 8, "kind": "plain"})",
          R"({"type": "bfloat16", "out": "float32", "n": "8", "k": 16, "rows": 8, "kind": "plain"})",
          R"({"type": "bfloat16", "out": "float32", "n": 8, "k": 16, "rows": 5, "kind": "plain"})",
          R"({"type": "bfloat16", "out": "float32", "n": 8, "k": 16, "rows": 8, "kind": "magic"})",
          R"({"type": "bfloat16", "out": "float32", "n": 8, "k": 16, "rows": 8, "kind": "gemv"})",
          R"({"type": "bfloat16", "out": "float32", "n": 8, "k": 16, "rows": 8, "kind": "gemv", "variant": -1})",
          R"({"type": "bfloat16", "out": "float32", "n": 8, "k": 16, "rows": 8, "kind": "cublaslt", "algorithm": "00ff"})",
      }) {
    entries += ", " + bad;
  }
  const absl::StatusOr<ProductTable> table = ParseProductTable(
      fmt::format(R"({{"format": 1, "identity": "{}", "products": [{}]}})", kIdentity, entries),
      kIdentity);
  ASSERT_TRUE(table.ok()) << table.status();
  ASSERT_EQ(table->size(), 1u);
  EXPECT_EQ(table->begin()->first.n, 8);
}

}  // namespace
}  // namespace polyreme::cuda
