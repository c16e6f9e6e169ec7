#include "parallel/plan/rope.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace polyreme::plan {
namespace {

RopeSpec Parse(std::string_view text) {
  const Json json = *Json::Parse(text);
  absl::StatusOr<RopeSpec> spec =
      ParseRope(ConfigReader(json, "config.json: "), {.theta = 0, .max_positions = 4096});
  EXPECT_TRUE(spec.ok()) << spec.status();
  return spec.value_or(RopeSpec{});
}

std::string Refusal(std::string_view text) {
  const Json json = *Json::Parse(text);
  const absl::StatusOr<RopeSpec> spec =
      ParseRope(ConfigReader(json, "config.json: "), {.theta = 0, .max_positions = 4096});
  EXPECT_TRUE(absl::IsInvalidArgument(spec.status())) << spec.status();
  return Message(spec.status());
}

TEST(Rope, BothSpellingsMeanTheSame) {
  EXPECT_EQ(
      Parse(R"({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}})"),
      Parse(R"({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4}})"));
  EXPECT_EQ(Parse(R"({"rope_theta": 1e4, "rope_scaling": null})"),
            Parse(R"({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}})"));
}

TEST(Rope, DefaultFrequenciesFallGeometrically) {
  const std::vector<double> f = InverseFrequencies(Parse(R"({"rope_theta": 10000})"), 8);
  ASSERT_EQ(f.size(), 4u);
  EXPECT_DOUBLE_EQ(f[0], 1.0);
  EXPECT_NEAR(f[1], 0.1, 1e-15);
  EXPECT_NEAR(f[2], 0.01, 1e-16);
  EXPECT_NEAR(f[3], 0.001, 1e-17);
}

TEST(Rope, LinearDividesEveryFrequency) {
  const std::vector<double> f = InverseFrequencies(
      Parse(R"({"rope_theta": 10000, "rope_scaling": {"type": "linear", "factor": 4.0}})"), 8);
  EXPECT_DOUBLE_EQ(f[0], 0.25);
  EXPECT_NEAR(f[3], 0.00025, 1e-18);
}

// Long waves are stretched, short ones kept, those between blended.
TEST(Rope, Llama3StretchesOnlyLongWaves) {
  const RopeSpec spec = Parse(R"({"rope_theta": 500000.0, "rope_scaling": {
      "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192}})");
  const std::vector<double> f = InverseFrequencies(spec, 128);
  const auto plain = [](int i) { return std::pow(500000.0, -2.0 * i / 128.0); };
  EXPECT_DOUBLE_EQ(f[0], 1.0);
  EXPECT_DOUBLE_EQ(f[28], plain(28));
  const double u = (8192.0 * plain(32) / (2.0 * M_PI) - 1.0) / 3.0;
  ASSERT_GT(u, 0.0);
  ASSERT_LT(u, 1.0);
  EXPECT_NEAR(f[32], (1.0 - u) * plain(32) / 8.0 + u * plain(32), 1e-15);
  EXPECT_DOUBLE_EQ(f[40], plain(40) / 8.0);
  EXPECT_DOUBLE_EQ(f[63], plain(63) / 8.0);
}

TEST(Rope, YarnBlendsBetweenItsTwoDimensions) {
  const RopeSpec spec = Parse(R"({"rope_theta": 1000000.0, "rope_scaling": {
      "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}})");
  EXPECT_NEAR(spec.attention_factor, 0.1 * std::log(4.0) + 1.0, 1e-15);
  const std::vector<double> f = InverseFrequencies(spec, 128);
  const auto plain = [](int i) { return std::pow(1e6, -2.0 * i / 128.0); };
  // dim(32) = 23.6 -> 23, dim(1) = 39.6 -> 40.
  EXPECT_DOUBLE_EQ(f[23], plain(23));
  const double ramp = (30.0 - 23.0) / (40.0 - 23.0);
  EXPECT_NEAR(f[30], plain(30) / 4.0 * ramp + plain(30) * (1.0 - ramp), 1e-15);
  EXPECT_NEAR(f[40], plain(40) / 4.0, 1e-18);
}

TEST(Rope, YarnAttentionFactorFollowsItsKeys) {
  const auto factor = [](std::string_view more) {
    return Parse(fmt::format(
                     R"({{"rope_theta": 1e6, "rope_scaling": {{"type": "yarn", "factor": 40{}}}}})",
                     more))
        .attention_factor;
  };
  EXPECT_DOUBLE_EQ(factor(R"(, "attention_factor": 1.5)"), 1.5);
  EXPECT_DOUBLE_EQ(factor(R"(, "mscale": 1.0, "mscale_all_dim": 1.0)"), 1.0);
  EXPECT_NEAR(factor(R"(, "mscale": 0.707, "mscale_all_dim": 1.0)"),
              (0.0707 * std::log(40.0) + 1.0) / (0.1 * std::log(40.0) + 1.0), 1e-15);
  EXPECT_NEAR(factor(""), 0.1 * std::log(40.0) + 1.0, 1e-15);
}

TEST(Rope, YarnWithoutOriginalTakesTheModelsLength) {
  const RopeSpec spec =
      Parse(R"({"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 2}})");
  EXPECT_EQ(spec.original_max_positions, 4096);
}

TEST(Rope, TableHoldsCosinesThenSines) {
  const RopeSpec spec = Parse(R"({"rope_theta": 100})");
  const std::vector<float> table = RopeTable(spec, 4, 3);
  ASSERT_EQ(table.size(), 12u);
  EXPECT_THAT(std::vector<float>(table.begin(), table.begin() + 4),
              testing::ElementsAre(1, 1, 0, 0));
  EXPECT_FLOAT_EQ(table[8], static_cast<float>(std::cos(2.0)));
  EXPECT_FLOAT_EQ(table[9], static_cast<float>(std::cos(0.2)));
  EXPECT_FLOAT_EQ(table[10], static_cast<float>(std::sin(2.0)));
  EXPECT_FLOAT_EQ(table[11], static_cast<float>(std::sin(0.2)));
}

TEST(Rope, RefusalsNameTheKey) {
  using testing::HasSubstr;
  EXPECT_THAT(Refusal(R"({})"), HasSubstr("config.json: rope_theta"));
  EXPECT_THAT(Refusal(R"({"rope_theta": "big"})"), HasSubstr("rope_theta: expected a number"));
  EXPECT_THAT(Refusal(R"({"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2}})"),
              HasSubstr("rope_scaling.type"));
  EXPECT_THAT(Refusal(R"({"rope_theta": 1e4, "rope_scaling": {"type": "linear"}})"),
              HasSubstr("rope_scaling.factor: expected this key"));
  EXPECT_THAT(Refusal(R"({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": -1}})"),
              HasSubstr("rope_scaling.factor"));
  EXPECT_THAT(Refusal(R"({"rope_theta": 1e4, "rope_scaling": {"long_factor": [1]}})"),
              HasSubstr("rope_scaling.long_factor"));
  EXPECT_THAT(Refusal(R"({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}})"),
              HasSubstr("rope_parameters.partial_rotary_factor"));
  EXPECT_THAT(Refusal(R"({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}})"),
              HasSubstr("rope_parameters.full_attention"));
  EXPECT_THAT(Refusal(R"({"rope_theta": 1e4, "rope_scaling": []})"), HasSubstr("rope_scaling"));
  EXPECT_THAT(Refusal(R"({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
                          "rope_scaling": {"rope_type": "yarn", "factor": 4}})"),
              HasSubstr("rope_scaling: expected it to be absent or equal beside rope_parameters"));
}

}  // namespace
}  // namespace polyreme::plan
