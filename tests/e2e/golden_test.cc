// The embedded demo model against Transformers in float32: the same greedy tokens, the same
// log-probabilities.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "parallel/base/file.h"
#include "parallel/base/json.h"
#include "tests/worker/model_harness.h"

namespace polyreme::model {
namespace {

// A step whose two best logits are closer than this may fall either way.
constexpr double kMarginMin = 1e-3;
constexpr double kLogprobTolerance = 2e-4;

const std::string kDemo = std::string(POLYREME_SOURCE_DIR) + "/deploy/demo-model";

std::vector<int32_t> Ints(const Json& list) {
  std::vector<int32_t> values;
  for (const Json& value : list.as_array()) values.push_back(static_cast<int32_t>(value.as_int()));
  return values;
}

Json ReadGolden(const std::string& file) {
  const absl::StatusOr<std::string> text = ReadFile(kDemo + "/" + file, 1 << 24);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.ok() ? *Json::Parse(*text) : Json::MakeArray();
}

// log softmax of one entry.
double Logprob(const std::vector<float>& logits, int32_t token) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - top);
  return logits[static_cast<size_t>(token)] - top - std::log(sum);
}

// Feeds the golden tokens and asks at each step what the model would have said.
void ExpectGolden(const Json& golden, const HarnessOptions& options, size_t chunk) {
  const std::vector<int32_t> prompt = Ints(*golden.Find("prompt_ids"));
  const std::vector<int32_t> tokens = Ints(*golden.Find("completion_ids"));
  const absl::StatusOr<HarnessLogits> logits =
      RunModel(kDemo, options, ForcedSteps(prompt, tokens, chunk));
  ASSERT_TRUE(logits.ok()) << logits.status();
  const size_t first = logits->size() - tokens.size();
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::vector<float>& row = (*logits)[first + i][0];
    EXPECT_NEAR(Logprob(row, tokens[i]), golden.Find("logprobs")->as_array()[i].as_double(),
                kLogprobTolerance)
        << "step " << i;
    if (golden.Find("margins")->as_array()[i].as_double() < kMarginMin) break;
    ASSERT_EQ(std::max_element(row.begin(), row.end()) - row.begin(), tokens[i]) << "step " << i;
  }
}

class Golden : public testing::TestWithParam<const char*> {};

TEST_P(Golden, TokensAndLogprobsAreThoseOfTransformers) {
  const Json goldens = ReadGolden(GetParam());
  ASSERT_FALSE(goldens.as_array().empty());
  for (const Json& golden : goldens.as_array()) {
    SCOPED_TRACE(golden.Find("completion") == nullptr ? "" : golden.Find("completion")->Dump());
    ExpectGolden(golden, {.num_threads = 2}, /*chunk=*/1000);
  }
}

TEST_P(Golden, AlsoOnFourRanksInSmallChunks) {
  const Json goldens = ReadGolden(GetParam());
  ASSERT_FALSE(goldens.as_array().empty());
  ExpectGolden(goldens.as_array()[0], {.stages = 2, .shards = 2}, /*chunk=*/7);
}

INSTANTIATE_TEST_SUITE_P(DemoModel, Golden,
                         testing::Values("golden_greedy_fp32.json", "golden_chat_fp32.json"),
                         [](const auto& name) {
                           return std::string(name.index == 0 ? "Plain" : "Chat");
                         });

}  // namespace
}  // namespace polyreme::model
