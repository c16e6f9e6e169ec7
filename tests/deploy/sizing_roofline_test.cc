// The tables that the 40B shape's rooflines were first worked out in, reproduced: decode, prompts
// and capacity by topology.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "deploy/bench/roofline.h"
#include "deploy/sizing/launch_plan.h"
#include "deploy/sizing/measured.h"
#include "deploy/sizing/presets.h"
#include "deploy/sizing/speed.h"

namespace polyreme::sizing {
namespace {

using bench::ElementBytes;
using bench::Layout;
using bench::Rates;
using bench::Roofline;

// Bytes per second, products, attention.
constexpr Rates kH100 = {3.0e12, 798e12, 690e12};
constexpr Rates kH200 = {4.3e12, 788e12, 690e12};
constexpr Rates kA100 = {1.80e12, 250e12, 190e12};
constexpr Rates kV100 = {0.80e12, 90e12, 60e12};
constexpr ElementBytes kBf16 = {2, 2, 2};
const ElementBytes kFp8 = {1, 2, 2};
const ElementBytes kW4 = {BitsPerWeight(Quantization::kW4, DType::kBF16) / 8, 2, 2};

const plan::ModelSpec& Spec() {
  static const auto* const model = new PlannedModel(*FindModel("iquest-coder-v1-40b"));
  return model->spec;
}

// Tables print whole numbers, of rates that they round too.
void ExpectRounded(double value, double printed, const std::string& what) {
  EXPECT_NEAR(value, printed, std::max(0.6, 0.006 * printed)) << what;
}

TEST(RooflineTable, OfDecodeIsReproduced) {
  Rates fp8 = kH100;
  fp8.operations = 1300e12;
  struct Row {
    const char* name;
    Rates rates;
    Layout layout;
    ElementBytes bytes;
    double context;
    double rates_by_batch[8];  // 1 4 8 16 32 64 128 256
  };
  const Row rows[] = {
      {"1xH100 w4a16", kH100, {1, 1}, kW4, 2048, {138, 506, 908, 1510, 2257, 3000, 3101, 3101}},
      {"1xH100 w4a16", kH100, {1, 1}, kW4, 32768, {94, 187, 224, 249, 263, 271, 272, 272}},
      {"1xH100 fp8", fp8, {1, 1}, kFp8, 2048, {74, 283, 531, 950, 1567, 2320, 3055, 3517}},
      {"1xH100 fp8", fp8, {1, 1}, kFp8, 32768, {59, 145, 191, 227, 250, 264, 272, 275}},
      {"1xH200", kH200, {1, 1}, kBf16, 2048, {54, 211, 409, 768, 1372, 2260, 3342, 3905}},
      {"1xH200", kH200, {1, 1}, kBf16, 32768, {48, 141, 209, 275, 326, 359, 379, 385}},
      {"2xH200 TP2", kH200, {2, 1}, kBf16, 2048, {108, 422, 817, 1537, 2744, 4521, 6684, 7810}},
      {"2xH200 TP2", kH200, {2, 1}, kBf16, 32768, {96, 283, 418, 549, 652, 719, 758, 770}},
      {"2xA100 TP2", kA100, {2, 1}, kBf16, 2048, {45, 177, 342, 643, 1149, 1892, 2798, 2907}},
      {"2xA100 TP2", kA100, {2, 1}, kBf16, 32768, {40, 118, 175, 230, 273, 301, 317, 318}},
      {"4xA100 TP4", kA100, {4, 1}, kBf16, 2048, {91, 353, 684, 1287, 2298, 3785, 5596, 5814}},
      {"4xA100 TP4", kA100, {4, 1}, kBf16, 32768, {80, 237, 350, 460, 545, 602, 634, 637}},
      {"4xV100 PP4", kV100, {1, 4}, kBf16, 2048, {10, 40, 80, 157, 304, 572, 1021, 1682}},
      {"4xV100 PP4", kV100, {1, 4}, kBf16, 32768, {9, 36, 64, 105, 155, 204, 242, 267}},
  };
  for (const Row& row : rows) {
    const Roofline roofline(Spec(), row.bytes);
    int64_t batch = 1;
    for (const double printed : row.rates_by_batch) {
      const double rate = static_cast<double>(batch) /
                          roofline.DecodeSeconds(row.rates, row.layout, batch, row.context);
      ExpectRounded(rate, printed, fmt::format("{} {} B={}", row.name, row.context, batch));
      batch = batch == 1 ? 4 : 2 * batch;
    }
  }
}

TEST(RooflineTable, OfPromptsIsReproduced) {
  const Roofline roofline(Spec(), kBf16);
  EXPECT_NEAR(roofline.PromptOperations(2048), 1.63e14, 0.005e14);
  EXPECT_NEAR(roofline.PromptOperations(8192), 6.94e14, 0.005e14);
  EXPECT_NEAR(roofline.PromptOperations(32768), 3.44e15, 0.005e15);
  EXPECT_NEAR(roofline.PromptOperations(131072), 2.43e16, 0.005e16);
  struct Row {
    const char* name;
    Rates rates;
    Layout layout;
    double tokens_per_second[4];  // 2K 8K 32K 128K
  };
  const Row rows[] = {
      {"H100", kH100, {1, 1}, {9900, 9250, 7280, 3940}},
      {"H100 fp8", {3.0e12, 1300e12, 690e12}, {1, 1}, {16000, 14300, 10100, 4640}},
      {"2xH200", kH200, {2, 1}, {19700, 18400, 14500, 7860}},
      {"2xA100", kA100, {2, 1}, {6230, 5760, 4410, 2280}},
      {"4xA100", kA100, {4, 1}, {12500, 11500, 8820, 4560}},
      {"4xV100", kV100, {1, 4}, {4470, 4090, 3040, 1510}},
  };
  for (const Row& row : rows) {
    int64_t tokens = 2048;
    for (const double printed : row.tokens_per_second) {
      const double rate =
          static_cast<double>(tokens) / roofline.PromptSeconds(row.rates, row.layout, tokens);
      // Three digits, some of them of either GPU.
      EXPECT_NEAR(rate, printed, 0.035 * printed) << row.name << " " << tokens;
      tokens *= 4;
    }
  }
}

TEST(RooflineTable, OfPipelineBubblesIsReproduced) {
  const auto percent = [](int32_t stages, int64_t chunks) {
    return 100 * Roofline::PipelineBubble({1, stages}, chunks);
  };
  EXPECT_NEAR(percent(2, 4), 20, 0.5);
  EXPECT_NEAR(percent(4, 4), 43, 0.5);
  EXPECT_NEAR(percent(2, 16), 5.9, 0.05);
  EXPECT_NEAR(percent(4, 16), 15.8, 0.05);
  EXPECT_NEAR(percent(2, 64), 1.5, 0.05);
  EXPECT_NEAR(percent(4, 64), 4.5, 0.05);
  EXPECT_EQ(percent(1, 1), 0);
}

// KV tokens of a card that keeps `reserve` GiB, by the table's own rule.
TEST(RooflineTable, OfCapacityIsReproduced) {
  constexpr double kGiB = 0x1p30;
  struct Row {
    const char* name;
    ElementBytes bytes;
    int gpus;
    double memory;   // bytes
    double reserve;  // bytes
    double printed;
    double at_once[3];  // 2K 32K 128K
  };
  const Row rows[] = {
      {"H100 w4a16", kW4, 1, 79.65 * kGiB, 2.5 * kGiB, 165e3, {80, 5, 1}},
      {"H100 fp8", kFp8, 1, 79.65 * kGiB, 2.5 * kGiB, 108e3, {52, 3, 0}},
      {"H200", kBf16, 1, 140.4 * kGiB, 3 * kGiB, 171e3, {83, 5, 1}},
      {"2xH200", kBf16, 2, 140.4 * kGiB, 3 * kGiB, 584e3, {285, 17, 4}},
      {"2xA100", kBf16, 2, 80.0 * kGiB, 2.5 * kGiB, 223e3, {108, 6, 1}},
      {"4xA100", kBf16, 4, 80.0 * kGiB, 2.5 * kGiB, 689e3, {336, 21, 5}},
      {"4xV100", kBf16, 4, 31.73 * kGiB, 1.2 * kGiB, 124e3, {60, 3, 0}},
  };
  for (const Row& row : rows) {
    const Roofline roofline(Spec(), row.bytes);
    const double room = row.gpus * (0.92 * row.memory - row.reserve) - roofline.resident_bytes();
    const double tokens = room / roofline.cache_bytes_per_token();
    EXPECT_NEAR(tokens, row.printed, 0.012 * row.printed) << row.name;
    int64_t length = 2048;
    for (const double at_once : row.at_once) {
      EXPECT_NEAR(std::floor(tokens / static_cast<double>(length)), at_once, 0.012 * at_once)
          << row.name << " " << length;
      length *= length == 2048 ? 16 : 4;
    }
  }
}

// The plan counts every byte, where the table keeps a round reserve.
TEST(RooflineTable, OfCapacityAndThePlansCacheAreClose) {
  struct Row {
    const char* gpu;
    int32_t shards;
    int32_t stages;
    double printed;
  };
  for (const Row& row : {Row{"h200", 1, 1, 171e3}, Row{"h200", 2, 1, 584e3},
                         Row{"a100-80g-sxm4", 2, 1, 223e3}, Row{"a100-80g-sxm4", 4, 1, 689e3}}) {
    LaunchSettings settings;
    settings.spec = Spec();
    settings.gpu = *GpuTable().Find(row.gpu);
    settings.shards = row.shards;
    settings.stages = row.stages;
    settings.step.max_num_batched_tokens = 8192;
    settings.step.max_model_len = 32768;
    const auto plan = MakeLaunchPlan(settings);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_TRUE(plan->fits);
    EXPECT_NEAR(static_cast<double>(plan->kv_tokens()), row.printed, 0.08 * row.printed)
        << row.gpu << " tp" << row.shards;
  }
}

TEST(Measured, SharesAreThoseOfTheBenchmarksPage) {
  std::ifstream file(std::string(POLYREME_SOURCE_DIR) + "/docs/benchmarks/h200.md");
  std::stringstream page;
  page << file.rdbuf();
  const MeasuredGpu* const h200 = MeasuredFamily("hopper");
  ASSERT_NE(h200, nullptr);
  EXPECT_NE(page.str().find(h200->date), std::string::npos);
  struct Row {
    const char* name;  // first cell
    Work work;
    int64_t size;
  };
  for (const Row& row :
       {Row{"decode B=1, 2K", Work::kDecode, 1}, Row{"decode B=16, 2K", Work::kDecode, 16},
        Row{"decode B=64, 2K", Work::kDecode, 64}, Row{"prompt 2K", Work::kPrompt, 2048},
        Row{"prompt 8K", Work::kPrompt, 8192},
        Row{"offline 192 x (1024 + 1024), output", Work::kOffline, 1024}}) {
    const size_t begin = page.str().find(fmt::format("| {} |", row.name));
    ASSERT_NE(begin, std::string::npos) << row.name;
    std::istringstream line(page.str().substr(begin, page.str().find('\n', begin) - begin));
    std::vector<std::string> cells;
    for (std::string cell; std::getline(line, cell, '|');) cells.push_back(cell);
    ASSERT_GT(cells.size(), 7u);
    EXPECT_EQ(std::stod(cells[3]), ShareOf(*h200, 1, 1, row.work, row.size).share) << row.name;
    EXPECT_EQ(std::stod(cells[7]), ShareOf(*h200, 2, 1, row.work, row.size).share) << row.name;
  }
}

TEST(Measured, ExpectedIsNeverMoreThanAtMost) {
  const GpuTable table;
  for (const Gpu& gpu : table.gpus()) {
    LaunchSettings settings;
    settings.spec = Spec();
    settings.gpu = gpu;
    settings.step.max_num_batched_tokens = 8192;
    for (const int64_t batch : kBatches) {
      const Estimate rate = DecodeRate(settings, batch, 2048);
      EXPECT_LT(rate.expected, rate.at_most) << gpu.name;
      EXPECT_GT(rate.expected, 0.3 * rate.at_most) << gpu.name;
    }
  }
}

}  // namespace
}  // namespace polyreme::sizing
