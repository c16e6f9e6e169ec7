// That the bench of ops runs from end to end and gives each figure with its roofline. How large the
// figures are is not a test's business.
#include "deploy/bench/bench_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace polyreme::bench {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(BenchOps, PrintsEachOpOfTheModelWithItsShareOfTheRoofline) {
  plan::ModelSpec model = DemoModelSizes();
  model.num_layers = 1;
  model.width = 32;
  model.num_query_heads = 2;
  model.num_kv_heads = 1;
  model.head_dim = 16;
  model.ffn_width = 48;
  model.vocabulary = 100;
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    model.dtype = dtype;
    std::string table;
    const absl::Status status = RunBenchOps({.model = model, .num_threads = 2}, &table);
    ASSERT_TRUE(status.ok()) << Message(status);
    for (const char* part :
         {"2 thread(s)", "GB/s", "GFLOP/s of FMA", "qkv 64x32", "attention out 32x32",
          "gate and up 96x32", "down 32x48", "head 100x32", "all products of a step", "attention,",
          "add and norm", " %\n"}) {
      EXPECT_THAT(table, HasSubstr(part));
    }
    EXPECT_THAT(table, Not(HasSubstr("nan")));
    EXPECT_THAT(table, Not(HasSubstr("inf")));
  }
}

TEST(BenchOps, RefusesABadNumberOfThreads) {
  std::string table;
  EXPECT_EQ(RunBenchOps({.model = DemoModelSizes(), .num_threads = 0}, &table).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace polyreme::bench
