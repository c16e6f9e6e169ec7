// Files of users: GPUs, prices and published figures, and every way in which they can be wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "deploy/sizing/claims.h"
#include "deploy/sizing/gpus.h"
#include "deploy/sizing/presets.h"
#include "parallel/base/file.h"

namespace polyreme::sizing {
namespace {

using testing::HasSubstr;

constexpr char kMine[] =
    R"({"currency": "EUR", "gpus": [{"name": "mine", "memory_gib": 64, "bandwidth_gbs": 1000,
        "tflops": 200, "compute_capability": 8.9, "multiprocessors": 100, "price_per_hour": 1.5}]})";

std::string Refusal(const std::string& json) {
  GpuTable table;
  const size_t before = table.gpus().size();
  const absl::Status status = table.Add(json, "gpus.json");
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << json << ": " << status;
  EXPECT_EQ(table.gpus().size(), before) << "a bad file changes nothing";
  return Message(status);
}

TEST(GpuTable, HasTheGpusThatPeopleAskFor) {
  const GpuTable table;
  for (const char* name : {"v100-16g-pcie", "v100-32g-pcie",
                           "v100-16g-sxm2", "v100-32g-sxm2",
                           "a100-40g-pcie", "a100-80g-pcie",
                           "a100-40g-sxm4", "a100-80g-sxm4",
                           "h100-80g-pcie", "h100-80g-sxm5",
                           "h100-94g-nvl",  "h200",
                           "b200",          "l4",
                           "l40s",          "a10",
                           "a40",           "rtx-3090",
                           "rtx-4090",      "rtx-5090",
                           "rtx-6000-ada"}) {
    const absl::StatusOr<Gpu> gpu = table.Find(name);
    ASSERT_TRUE(gpu.ok()) << gpu.status();
    EXPECT_GT(gpu->memory_bytes, int64_t{14} << 30) << name;
    EXPECT_GT(gpu->bandwidth, 100e9) << name;
    EXPECT_GT(gpu->operations, 50e12) << name;
    EXPECT_GT(gpu->link, 0) << name;
    EXPECT_FALSE(gpu->memory_source.empty()) << name;
    EXPECT_FALSE(gpu->rates_source.empty()) << name;
    EXPECT_THAT(GpuTableText(table), HasSubstr(std::string(name) + ": memory: "));
  }
}

TEST(GpuTable, TakesAUsersGpusAndPrices) {
  GpuTable table;
  ASSERT_TRUE(table.Add(kMine, "gpus.json").ok());
  const absl::StatusOr<Gpu> mine = table.Find("mine");
  ASSERT_TRUE(mine.ok());
  EXPECT_EQ(mine->memory_bytes, int64_t{64} << 30);
  EXPECT_EQ(mine->compute_capability, 89);
  EXPECT_EQ(mine->price_per_hour, 1.5);
  EXPECT_EQ(table.currency(), "EUR");
  // What a file does not name of a known one stays.
  ASSERT_TRUE(table.Add(R"({"gpus": [{"name": "h200", "price_per_hour": 3}]})", "p").ok());
  EXPECT_EQ(table.Find("h200")->price_per_hour, 3);
  EXPECT_EQ(table.Find("h200")->bandwidth, 4.8e12);
  EXPECT_GT(table.Find("h200")->measured_bandwidth, 0);
  // Another rate of its own puts the measured one aside.
  ASSERT_TRUE(table.Add(R"({"gpus": [{"name": "h200", "bandwidth_gbs": 4000}]})", "p").ok());
  EXPECT_EQ(table.Find("h200")->best_bandwidth(), 4e12);
}

TEST(GpuTable, NamesWhatIsWrongWithAFile) {
  EXPECT_THAT(Refusal("{"), HasSubstr("expected"));
  EXPECT_THAT(Refusal("[]"), HasSubstr("an object with a list \"gpus\""));
  EXPECT_THAT(Refusal(R"({"gpus": 3})"), HasSubstr("gpus.json"));
  EXPECT_THAT(Refusal(R"({"gpus": [3]})"), HasSubstr("gpus[0]: expected an object"));
  EXPECT_THAT(Refusal(R"({"gpus": [], "colour": "red"})"), HasSubstr("colour"));
  EXPECT_THAT(Refusal(R"({"gpus": [{"memory_gib": 3}]})"), HasSubstr("gpus[0].name"));
  EXPECT_THAT(Refusal(R"({"gpus": [{"name": "A B"}]})"), HasSubstr("small letters"));
  EXPECT_THAT(Refusal(R"({"gpus": [{"name": "list"}]})"), HasSubstr("small letters"));
  EXPECT_THAT(Refusal(R"({"gpus": [{"name": "new"}]})"), HasSubstr("gpus[0].memory_gib"));
  EXPECT_THAT(Refusal(R"({"gpus": [{"name": "h200", "memory_gib": -1}]})"),
              HasSubstr("gpus[0].memory_gib"));
  EXPECT_THAT(Refusal(R"({"gpus": [{"name": "h200", "price_per_hour": "3"}]})"),
              HasSubstr("gpus[0].price_per_hour"));
  EXPECT_THAT(Refusal(R"({"gpus": [{"name": "h200", "prise": 3}]})"), HasSubstr("gpus[0].prise"));
  EXPECT_THAT(Refusal(R"({"gpus": [{"name": "h200"}, {"name": "h200"}]})"), HasSubstr("twice"));
  EXPECT_TRUE(absl::IsNotFound(GpuTable().AddFile("/no/such/file")));
}

TEST(GpuTable, SurvivesEveryCutAndManyChangesOfAFile) {
  const std::string good = kMine;
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_FALSE(GpuTable().Add(good.substr(0, length), "f").ok()) << length;
  }
  constexpr unsigned kSeed = 20261129;
  std::mt19937 random(kSeed);
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string text = good;
    for (int change = 0; change < 3; ++change) {
      text[random() % text.size()] = static_cast<char>(random() % 256);
    }
    if (!GpuTable().Add(text, "f").ok()) ++refused;
  }
  EXPECT_GT(refused, 1000) << "seed " << kSeed;
}

TEST(GpuChoice, IsANameAndPerhapsANumber) {
  const GpuTable table;
  EXPECT_EQ(ParseGpuChoice(table, "h200")->count, 0);
  EXPECT_EQ(ParseGpuChoice(table, "h200:4")->count, 4);
  for (const char* wrong :
       {"", ":", "h200:", "h200:0", "h200:-1", "h200:x", "h200:9999", "H200", "h200:1:1", "list"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseGpuChoice(table, wrong).status())) << wrong;
  }
}

std::vector<Claim> Published() {
  const auto text =
      ReadFile(std::string(POLYREME_SOURCE_DIR) + "/docs/sizing-published.json", 1 << 20);
  CHECK(text.ok(), "{}", Message(text.status()));
  auto claims = ParseClaims(*text, "published");
  CHECK(claims.ok(), "{}", Message(claims.status()));
  return *std::move(claims);
}

TEST(Claims, OfThePublishedTablesAreJudgedAsByHand) {
  const plan::ModelSpec spec = FindModel("iquest-coder-v1-40b")->spec;
  const GpuTable table;
  // Worked out by hand: ceilings of decode at 2.3K on 1.935 TB/s, least memory, least time of a
  // first token on 312 TFLOP/s.
  struct Row {
    Claim claim;
    double bound;
    bool possible;
  };
  const auto claim = [](Claim::Kind kind, double value, const char* gpu, int64_t batch,
                        int64_t context, int64_t output = 0, double rate = 0, double bits = 16) {
    Claim c{.says = "x",
            .kind = kind,
            .value = value,
            .gpu = gpu,
            .bits_per_weight = bits,
            .batch = batch,
            .context = context,
            .output = output,
            .rate = rate};
    return c;
  };
  const auto against = [](Claim c) {
    c.against = "a100-80g-sxm4";
    return c;
  };
  using Kind = Claim::Kind;
  const Row rows[] = {
      {claim(Kind::kDecode, 148, "a100-80g-pcie", 1, 2304), 24.3, false},
      {claim(Kind::kDecode, 392, "a100-80g-pcie", 4, 2304), 94.6, false},
      {claim(Kind::kDecode, 587, "a100-80g-pcie", 8, 2304), 182, false},
      {claim(Kind::kDecode, 803, "a100-80g-pcie", 16, 2304), 341, false},
      {claim(Kind::kDecode, 963, "a100-80g-pcie", 32, 2304), 602, false},
      {claim(Kind::kDecode, 1008, "a100-80g-pcie", 64, 2304), 975, false},
      {claim(Kind::kMemory, 32.1, "a100-80g-sxm4", 1, 2048), 74.7, false},
      {claim(Kind::kMemory, 63.5, "a100-80g-sxm4", 1, 131072), 114.1, false},
      {claim(Kind::kCache, 48.2, "a100-80g-sxm4", 1, 131072), 40, false},
      {claim(Kind::kDecode, 38.2, "a100-80g-sxm4", 1, 2048), 25.7, false},
      {claim(Kind::kDecode, 23.1, "a100-80g-sxm4", 1, 131072), 16.7, false},
      {claim(Kind::kFirstToken, 6.5, "a100-80g-sxm4", 1, 32768), 11.0, false},
      {claim(Kind::kFirstToken, 10.9, "a100-80g-sxm4", 1, 65536), 27.7, false},
      {claim(Kind::kFirstToken, 18.4, "a100-80g-sxm4", 1, 131072), 77.9, false},
      {claim(Kind::kMemory, 65.3, "a100-80g-sxm4", 8, 8192), 94, false},
      {claim(Kind::kRequestRate, 24, "a100-80g-sxm4", 1, 2304, 512, 122.5), 0.24, false},
      {claim(Kind::kMemory, 22.4, "a100-80g-sxm4", 1, 1, 0, 0, 4.156), 20.3, true},
      {claim(Kind::kCache, 40, "a100-80g-sxm4", 1, 131072), 40, true},
      {claim(Kind::kCache, 65.3, "a100-80g-sxm4", 8, 65536), 160, false},
      {claim(Kind::kDecode, 47.7, "h200", 1, 2048), 60.4, true},
      {claim(Kind::kCacheGrowth, 0.5, "a100-80g-sxm4", 1, 131072), 1, false},
      {claim(Kind::kCacheGrowth, 1, "a100-80g-sxm4", 1, 131072), 1, true},
      // 3.35 TB/s over 2.039.
      {against(claim(Kind::kDecodeRatio, 0.9, "h100-80g-sxm5", 1, 2048)), 1.643, true},
      {against(claim(Kind::kDecodeRatio, 2.5, "h100-80g-sxm5", 1, 2048)), 1.643, false},
  };
  for (const Row& row : rows) {
    const auto judged = JudgeClaim(row.claim, spec, table);
    ASSERT_TRUE(judged.ok()) << judged.status();
    EXPECT_NEAR(judged->bound, row.bound, 0.012 * row.bound) << row.claim.value;
    EXPECT_EQ(judged->possible, row.possible) << row.claim.value << ": " << judged->why;
  }
  EXPECT_GE(Published().size(), 34u);
}

TEST(Claims, NameWhatIsWrongWithAFile) {
  const auto refusal = [](const std::string& claim) {
    const auto claims = ParseClaims("{\"claims\": [" + claim + "]}", "f");
    EXPECT_TRUE(absl::IsInvalidArgument(claims.status())) << claim;
    return Message(claims.status());
  };
  EXPECT_TRUE(absl::IsInvalidArgument(ParseClaims("{}", "f").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ParseClaims("{\"claims\": 1}", "f").status()));
  EXPECT_THAT(refusal("1"), HasSubstr("claims[0]: expected an object"));
  EXPECT_THAT(refusal(R"({"kind": "memory_gib"})"), HasSubstr("claims[0].says"));
  EXPECT_THAT(refusal(R"({"says": "a", "kind": "x", "value": 1, "gpu": "h200"})"),
              HasSubstr("claims[0].kind"));
  EXPECT_THAT(refusal(R"({"says": "a", "kind": "latency_s", "value": 1, "gpu": "h200"})"),
              HasSubstr("claims[0].output"));
  EXPECT_THAT(refusal(R"({"says": "a", "kind": "decode_ratio", "value": 1, "gpu": "h200"})"),
              HasSubstr("claims[0].against"));
  EXPECT_THAT(refusal(R"({"says": "a", "kind": "memory_gib", "value": -1, "gpu": "h200"})"),
              HasSubstr("claims[0].value"));
  EXPECT_THAT(
      refusal(R"({"says": "a", "kind": "memory_gib", "value": 1, "gpu": "h200", "dtype": "int8"})"),
      HasSubstr("claims[0].dtype"));
  Claim unknown{.says = "a", .gpu = "abacus"};
  EXPECT_TRUE(absl::IsInvalidArgument(
      JudgeClaim(unknown, FindModel("llama-3.1-8b")->spec, GpuTable()).status()));
}

}  // namespace
}  // namespace polyreme::sizing
