// The embedded demo model, and a tiny random one of each family, against Transformers in float32:
// the same greedy tokens, the same log-probabilities; on a GPU in narrower types too, as far as
// their rounding lets one tell.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>

#include "parallel/base/file.h"
#include "parallel/base/json.h"
#include "tests/worker/model_harness.h"

namespace polyreme::model {
namespace {

// A step whose two best logits are closer than this may fall either way. Types narrower than
// float32: two best logits that can both be wrong by the tolerance.
constexpr double kMarginMin = 1e-3;

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

// Feeds the golden tokens and asks at each step what the model would have said. Logits may differ
// by the backend's tolerance relative to the largest, log-probabilities by the same.
void ExpectGolden(const std::string& directory, const Reference& golden,
                  const HarnessOptions& options, size_t chunk) {
  const std::vector<int32_t>& tokens = golden.tokens;
  const absl::StatusOr<HarnessLogits> logits =
      RunModel(directory, options, ForcedSteps(golden.prompt, tokens, chunk));
  ASSERT_TRUE(logits.ok()) << logits.status();
  const size_t first = logits->size() - tokens.size();
  const bool narrow = options.backend.dtype != DType::kF32;
  double scale = 1.0;
  for (const double logit : golden.logits) scale = std::max(scale, std::abs(logit));
  // The demo model's goldens have no logits: rounding goes with the model's own.
  if (narrow) scale = std::max<double>(scale, *std::ranges::max_element((*logits)[first][0]));
  const double tolerance = options.backend.tolerance() * scale;
  const double margin_min = narrow ? 2 * tolerance : kMarginMin;
  double worst = 0;
  for (size_t i = 0; i < golden.logits.size(); ++i) {
    ASSERT_NEAR((*logits)[first][0][i], golden.logits[i], tolerance) << "logit " << i;
    worst = std::max(worst, std::abs((*logits)[first][0][i] - golden.logits[i]));
  }
  int judged = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::vector<float>& row = (*logits)[first + i][0];
    const double logprob = Logprob(row, tokens[i]);
    EXPECT_NEAR(logprob, golden.logprobs[i], tolerance) << "step " << i;
    worst = std::max(worst, std::abs(logprob - golden.logprobs[i]));
    if (golden.margins[i] < margin_min) continue;
    ASSERT_EQ(std::max_element(row.begin(), row.end()) - row.begin(), tokens[i]) << "step " << i;
    ++judged;
  }
  if (options.backend.on_gpu()) {
    fmt::print("{}: largest error {:.1e} of the largest logit (at most {:.0e}), {} of {} tokens\n",
               options.backend.name, worst / scale, options.backend.tolerance(), judged,
               tokens.size());
  }
}

// Layouts of several ranks that the backend has room for.
std::vector<HarnessOptions> Layouts(const TestBackend& backend, int64_t positions) {
  HarnessOptions options{.positions = positions, .backend = backend};
  if (backend.max_ranks >= 4) {
    options.stages = options.shards = 2;
    return {options};
  }
  if (backend.max_ranks == 1) return {options};
  std::vector<HarnessOptions> layouts = {options, options};
  layouts[0].shards = 2;
  layouts[1].stages = 2;
  return layouts;
}

std::string DemoDirectory() {
  return SourcePath("deploy/demo-model");
}

std::vector<Reference> DemoReferences(const std::string& file) {
  std::vector<Reference> references;
  const Json golden = ReadGolden(DemoDirectory() + "/" + file);
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

// A file of goldens or a model's name, and where it runs.
using Case = std::tuple<const char*, TestBackend>;

class DemoModel : public testing::TestWithParam<Case> {};

TEST_P(DemoModel, TokensAndLogprobsAreThoseOfTransformers) {
  const auto& [file, backend] = GetParam();
  const std::vector<Reference> goldens = DemoReferences(file);
  ASSERT_GE(goldens.size(), 6u);
  for (size_t i = 0; i < goldens.size(); ++i) {
    SCOPED_TRACE(i);
    ExpectGolden(DemoDirectory(), goldens[i], {.num_threads = 2, .backend = backend},
                 /*chunk=*/1000);
  }
}

TEST_P(DemoModel, AlsoOnSeveralRanksInSmallChunks) {
  const auto& [file, backend] = GetParam();
  const std::vector<Reference> goldens = DemoReferences(file);
  ASSERT_FALSE(goldens.empty());
  for (const HarnessOptions& layout : Layouts(backend, 512)) {
    SCOPED_TRACE(fmt::format("tp{}pp{}", layout.shards, layout.stages));
    ExpectGolden(DemoDirectory(), goldens[0], layout, /*chunk=*/7);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, DemoModel,
                         testing::Combine(testing::Values("golden_greedy_fp32.json",
                                                          "golden_chat_fp32.json"),
                                          testing::ValuesIn(TestBackends())),
                         [](const auto& name) {
                           const bool chat =
                               std::string_view(std::get<0>(name.param)).find("chat") !=
                               std::string_view::npos;
                           return (chat ? "Chat_" : "Plain_") + std::get<1>(name.param).name;
                         });

std::string TinyDirectory(const std::string& name) {
  return SourcePath("tests/data/models/" + name);
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

class TinyModel : public testing::TestWithParam<Case> {};

TEST_P(TinyModel, LogitsAndTokensAreThoseOfTransformers) {
  const auto& [model, backend] = GetParam();
  const std::vector<Reference> goldens = TinyReferences(model);
  ASSERT_GE(goldens.size(), 4u);
  for (const Reference& golden : goldens) {
    SCOPED_TRACE(fmt::format("prompt of {} tokens", golden.prompt.size()));
    ASSERT_FALSE(golden.logits.empty());
    ExpectGolden(TinyDirectory(model), golden, {.positions = 256, .backend = backend},
                 /*chunk=*/1000);
  }
}

TEST_P(TinyModel, AlsoOnSeveralRanksInSmallChunks) {
  const auto& [model, backend] = GetParam();
  const std::vector<Reference> goldens = TinyReferences(model);
  ASSERT_FALSE(goldens.empty());
  for (const HarnessOptions& layout : Layouts(backend, 256)) {
    SCOPED_TRACE(fmt::format("tp{}pp{}", layout.shards, layout.stages));
    ExpectGolden(TinyDirectory(model), goldens.back(), layout, /*chunk=*/7);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Golden, TinyModel,
    testing::Combine(testing::Values("llama_tied", "llama_rope_llama3", "llama_rope_linear",
                                     "llama_rope_yarn", "llama_biases", "mistral_head_dim",
                                     "qwen2_sharded", "qwen3_tied", "iquestcoder"),
                     testing::ValuesIn(TestBackends())),
    [](const auto& name) {
      return std::string(std::get<0>(name.param)) + "_" + std::get<1>(name.param).name;
    });

}  // namespace
}  // namespace polyreme::model
