// The roofline of the 40B shape against figures that were worked out by hand from the same
// formulas.
#include "deploy/bench/roofline.h"

#include <gtest/gtest.h>

namespace polyreme::bench {
namespace {

constexpr Rates kH200 = {4.3e12, 788e12};
constexpr Layout kOne = {1, 1};
constexpr Layout kTwoShards = {2, 1};

plan::ModelSpec Spec() {
  const auto spec = plan::ReadModelSpec(std::string(POLYREME_SOURCE_DIR) +
                                        "/deploy/bench/configs/iquest-coder-v1-40b");
  CHECK(spec.ok(), "{}", Message(spec.status()));
  return *spec;
}

const Roofline& Bf16() {
  static const Roofline roofline(Spec(), 2, 2);
  return roofline;
}

void ExpectNear(double value, double expected, double share = 0.015) {
  EXPECT_NEAR(value, expected, expected * share);
}

TEST(Roofline, KnowsTheBytesOfTheModel) {
  EXPECT_EQ(plan::NumParameters(Spec()), 39'794'283'520);
  ExpectNear(Bf16().weight_bytes(), 78.80e9, 1e-3);
  ExpectNear(Bf16().resident_bytes(), 74.1 * (1 << 30), 1e-3);
  EXPECT_EQ(Bf16().cache_bytes_per_token(), 327680);
}

TEST(Roofline, OfDecodeIsWeightsThenCache) {
  const auto tokens_per_second = [](const Layout& layout, int64_t batch, double context) {
    return static_cast<double>(batch) / Bf16().DecodeSeconds(kH200, layout, batch, context);
  };
  ExpectNear(tokens_per_second(kOne, 1, 2048), 54);
  ExpectNear(tokens_per_second(kOne, 64, 2048), 2260);
  ExpectNear(tokens_per_second(kOne, 8, 32768), 209);
  ExpectNear(tokens_per_second(kTwoShards, 1, 2048), 108);
  ExpectNear(tokens_per_second(kTwoShards, 256, 2048), 7810);
}

TEST(Roofline, OfAPipelineReadsTheWeightsOncePerMicroBatch) {
  const Rates v100 = {0.80e12, 90e12};
  const Layout four = {1, 4};
  const auto tokens_per_second = [&](int64_t batch) {
    return static_cast<double>(batch) / Bf16().DecodeSeconds(v100, four, batch, 2048);
  };
  ExpectNear(tokens_per_second(1), 10, 0.05);
  ExpectNear(tokens_per_second(4), 40, 0.02);
  ExpectNear(tokens_per_second(32), 304);
  ExpectNear(tokens_per_second(256), 1682);
}

TEST(Roofline, OfPromptsIsTheirMultiplications) {
  ExpectNear(Bf16().PromptOperations(2048), 1.63e14);
  ExpectNear(Bf16().PromptOperations(32768), 3.44e15);
  ExpectNear(Bf16().PromptOperations(131072), 2.43e16);
  ExpectNear(Bf16().PromptSeconds(kH200, kOne, 8192), 0.89);
  ExpectNear(Bf16().PromptSeconds(kH200, kTwoShards, 8192), 0.45, 0.025);
}

TEST(Roofline, OfflineIsPromptsAndSharedDecodeSteps) {
  const auto tokens_per_second = [](const Layout& layout, double cache_tokens) {
    const int64_t concurrent = Bf16().Concurrency(cache_tokens, 2048, 512);
    return 1024 / Bf16().OfflineSeconds(kH200, layout, 1024, 1024, concurrent);
  };
  ExpectNear(tokens_per_second(kOne, 171e3), 2278);
  ExpectNear(tokens_per_second(kTwoShards, 584e3), 6284);
}

TEST(Roofline, SomethingAlwaysRunsAtOnce) {
  EXPECT_EQ(Bf16().Concurrency(1000, 2048, 512), 1);
  EXPECT_EQ(Bf16().Concurrency(1e9, 2048, 512), 512);
}

}  // namespace
}  // namespace polyreme::bench
