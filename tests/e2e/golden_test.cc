// The embedded demo model, and a tiny random one of each family, against Transformers in float32:
// the same greedy tokens, the same log-probabilities.
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
// Of logits, relative to the largest; of log-probabilities, as they are.
constexpr double kTolerance = 2e-4;

const std::string kRoot = POLYREME_SOURCE_DIR;
const std::string kDemo = kRoot + "/deploy/demo-model";

std::vector<int32_t> Ints(const Json& list) {
  std::vector<int32_t> values;
  for (const Json& value : list.as_array()) values.push_back(static_cast<int32_t>(value.as_int()));
  return values;
}

std::vector<double> Doubles(const Json& list) {
  std::vector<double> values;
  for (const Json& value : list.as_array()) values.push_back(value.as_double());
  return values;
}

// Null if it cannot be read.
Json ReadGolden(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path, 1 << 24);
  EXPECT_TRUE(text.ok()) << text.status();
  absl::StatusOr<Json> json = Json::Parse(text.value_or(""));
  EXPECT_TRUE(json.ok()) << path << ": " << json.status();
  if (!json.ok()) return Json();
  return *std::move(json);
}

// log softmax of one entry.
double Logprob(const std::vector<float>& logits, int32_t token) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - top);
  return logits[static_cast<size_t>(token)] - top - std::log(sum);
}

// What Transformers computed for one prompt.
struct Reference {
  std::vector<int32_t> prompt;
  std::vector<int32_t> tokens;   // greedy
  std::vector<double> logprobs;  // of each token
  std::vector<double> margins;   // between the best and the second logit at each step
  std::vector<double> logits;    // of the prompt's last position; may be empty
};

// Feeds the golden tokens and asks at each step what the model would have said.
void ExpectGolden(const std::string& directory, const Reference& golden,
                  const HarnessOptions& options, size_t chunk) {
  const std::vector<int32_t>& tokens = golden.tokens;
  const absl::StatusOr<HarnessLogits> logits =
      RunModel(directory, options, ForcedSteps(golden.prompt, tokens, chunk));
  ASSERT_TRUE(logits.ok()) << logits.status();
  const size_t first = logits->size() - tokens.size();
  double scale = 1.0;
  for (const double logit : golden.logits) scale = std::max(scale, std::abs(logit));
  for (size_t i = 0; i < golden.logits.size(); ++i) {
    ASSERT_NEAR((*logits)[first][0][i], golden.logits[i], kTolerance * scale) << "logit " << i;
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::vector<float>& row = (*logits)[first + i][0];
    EXPECT_NEAR(Logprob(row, tokens[i]), golden.logprobs[i], kTolerance * scale) << "step " << i;
    if (golden.margins[i] < kMarginMin) break;
    ASSERT_EQ(std::max_element(row.begin(), row.end()) - row.begin(), tokens[i]) << "step " << i;
  }
}

std::vector<Reference> DemoReferences(const std::string& file) {
  std::vector<Reference> references;
  const Json golden = ReadGolden(kDemo + "/" + file);
  if (!golden.is_array()) return references;
  for (const Json& row : golden.as_array()) {
    references.push_back({.prompt = Ints(*row.Find("prompt_ids")),
                          .tokens = Ints(*row.Find("completion_ids")),
                          .logprobs = Doubles(*row.Find("logprobs")),
                          .margins = Doubles(*row.Find("margins")),
                          .logits = {}});
  }
  return references;
}

class DemoModel : public testing::TestWithParam<const char*> {};

TEST_P(DemoModel, TokensAndLogprobsAreThoseOfTransformers) {
  const std::vector<Reference> goldens = DemoReferences(GetParam());
  ASSERT_GE(goldens.size(), 6u);
  for (size_t i = 0; i < goldens.size(); ++i) {
    SCOPED_TRACE(i);
    ExpectGolden(kDemo, goldens[i], {.num_threads = 2}, /*chunk=*/1000);
  }
}

TEST_P(DemoModel, AlsoOnFourRanksInSmallChunks) {
  const std::vector<Reference> goldens = DemoReferences(GetParam());
  ASSERT_FALSE(goldens.empty());
  ExpectGolden(kDemo, goldens[0], {.stages = 2, .shards = 2}, /*chunk=*/7);
}

INSTANTIATE_TEST_SUITE_P(Golden, DemoModel,
                         testing::Values("golden_greedy_fp32.json", "golden_chat_fp32.json"),
                         [](const auto& name) {
                           return std::string(name.index == 0 ? "Plain" : "Chat");
                         });

std::string TinyDirectory(const std::string& name) {
  return kRoot + "/tests/data/models/" + name;
}

std::vector<Reference> TinyReferences(const std::string& name) {
  std::vector<Reference> references;
  const Json golden = ReadGolden(TinyDirectory(name) + "/golden.json");
  if (golden.Find("prompts") == nullptr) return references;
  for (const Json& row : golden.Find("prompts")->as_array()) {
    references.push_back({.prompt = Ints(*row.Find("ids")),
                          .tokens = Ints(*row.Find("greedy_ids")),
                          .logprobs = Doubles(*row.Find("greedy_logprobs")),
                          .margins = Doubles(*row.Find("greedy_margins")),
                          .logits = Doubles(*row.Find("logits"))});
  }
  return references;
}

class TinyModel : public testing::TestWithParam<const char*> {};

TEST_P(TinyModel, LogitsAndTokensAreThoseOfTransformers) {
  const std::vector<Reference> goldens = TinyReferences(GetParam());
  ASSERT_GE(goldens.size(), 4u);
  for (const Reference& golden : goldens) {
    SCOPED_TRACE(fmt::format("prompt of {} tokens", golden.prompt.size()));
    ASSERT_FALSE(golden.logits.empty());
    ExpectGolden(TinyDirectory(GetParam()), golden, {.positions = 256}, /*chunk=*/1000);
  }
}

TEST_P(TinyModel, AlsoOnFourRanksInSmallChunks) {
  const std::vector<Reference> goldens = TinyReferences(GetParam());
  ASSERT_FALSE(goldens.empty());
  ExpectGolden(TinyDirectory(GetParam()), goldens.back(),
               {.stages = 2, .shards = 2, .positions = 256}, /*chunk=*/7);
}

INSTANTIATE_TEST_SUITE_P(Golden, TinyModel,
                         testing::Values("llama_tied", "llama_rope_llama3", "llama_rope_linear",
                                         "llama_rope_yarn", "llama_biases", "mistral_head_dim",
                                         "qwen2_sharded", "qwen3_tied", "iquestcoder"),
                         [](const auto& name) { return std::string(name.param); });

}  // namespace
}  // namespace polyreme::model
