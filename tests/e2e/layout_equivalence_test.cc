// The test that matters most: the same requests give the same tokens and the same
// log-probabilities, to the last bit, on every layout, alone or in company, in one prompt chunk or
// many. Real processes under mpirun, real sockets.

#include <gtest/gtest.h>

#include <csignal>
#include <future>
#include <string>
#include <vector>

#include "tests/e2e/launched_cluster.h"

namespace polyreme::e2e {
namespace {

struct Layout {
  int tensor;
  int pipeline;
  int max_num_batched_tokens;  // small: prompts come in several chunks
};

void PrintTo(const Layout& layout, std::ostream* out) {
  *out << "tp" << layout.tensor << "pp" << layout.pipeline << " chunk "
       << layout.max_num_batched_tokens;
}

Json Completion(const std::string& prompt, double temperature, int64_t seed) {
  return Json::MakeObject({{"model", "demo-model"},
                           {"prompt", prompt},
                           {"max_tokens", 24},
                           {"temperature", temperature},
                           {"top_p", 0.95},
                           {"seed", seed},
                           {"ignore_eos", true},
                           {"logprobs", 3},
                           {"return_token_ids", true}});
}

std::vector<Json> Requests() {
  std::string lines;
  for (int i = 0; i < 40; ++i) lines += fmt::format("def f{}(x):\n    return x + {}\n\n", i, i * i);
  std::vector<Json> requests;
  requests.push_back(Completion("def fibonacci(n):\n", 0.0, 1));
  requests.push_back(Completion(lines + "def last(", 0.0, 2));
  requests.push_back(Completion("import os\n\nclass Walker:\n", 0.9, 3));
  requests.push_back(Completion(lines.substr(0, 333), 0.7, 4));
  Json penalised = Completion("for i in range(10):\n    print(", 0.8, 5);
  penalised.Set("repetition_penalty", 1.2)
      .Set("frequency_penalty", 0.5)
      .Set("top_k", 40)
      .Set("n", 2);
  requests.push_back(penalised);
  return requests;
}

// What must be equal of an answer: text, token ids, log-probabilities as printed (shortest form
// that reads back to the same float).
std::string Essence(const Json& response) {
  const Json* choices = response.Find("choices");
  EXPECT_NE(choices, nullptr) << response.Dump();
  return choices == nullptr ? response.Dump() : choices->Dump();
}

std::vector<std::string> AnswerAll(const Cluster& cluster, bool together) {
  const std::vector<Json> requests = Requests();
  std::vector<std::string> answers;
  if (!together) {
    for (const Json& request : requests) {
      answers.push_back(Essence(cluster.Post("/v1/completions", request)));
    }
    return answers;
  }
  std::vector<std::future<std::string>> waiting;
  for (const Json& request : requests) {
    waiting.push_back(std::async(std::launch::async, [&cluster, request] {
      return Essence(cluster.Post("/v1/completions", request));
    }));
  }
  for (auto& answer : waiting) answers.push_back(answer.get());
  return answers;
}

// One rank, one request at a time, whole prompts: what everything else must equal.
const std::vector<std::string>& Reference() {
  static const std::vector<std::string> answers = [] {
    const Cluster cluster = StartCluster({}, {"--max-num-batched-tokens", "4096"});
    return AnswerAll(cluster, false);
  }();
  return answers;
}

class LayoutEquivalence : public testing::TestWithParam<Layout> {};

TEST_P(LayoutEquivalence, SameTokensAndLogProbabilitiesAloneAndInCompany) {
  const Layout& layout = GetParam();
  const int ranks = layout.tensor * layout.pipeline;
  Cluster cluster = StartCluster(
      Mpirun(ranks), {"-tp", std::to_string(layout.tensor), "-pp", std::to_string(layout.pipeline),
                      "--max-num-batched-tokens", std::to_string(layout.max_num_batched_tokens)});
  ASSERT_NE(cluster.port, 0);
  EXPECT_EQ(AnswerAll(cluster, false), Reference());
  EXPECT_EQ(AnswerAll(cluster, true), Reference());
  // A launch under mpirun ends whole and in order when it is told to.
  const std::vector<pid_t> family = cluster.program->Descendants("polyreme");
  EXPECT_EQ(family.size(), static_cast<size_t>(2 * ranks + 1));
  cluster.program->Signal(SIGTERM);
  EXPECT_TRUE(cluster.program->WaitForExit(absl::Seconds(30)).has_value());
  EXPECT_EQ(FirstAlive(family, absl::Seconds(5)), std::nullopt);
}

INSTANTIATE_TEST_SUITE_P(Layouts, LayoutEquivalence,
                         testing::Values(Layout{1, 1, 64}, Layout{2, 1, 512}, Layout{1, 2, 96},
                                         Layout{4, 1, 2048}, Layout{2, 2, 128}, Layout{1, 4, 48}),
                         [](const testing::TestParamInfo<Layout>& layout) {
                           return fmt::format("tp{}pp{}", layout.param.tensor,
                                              layout.param.pipeline);
                         });

}  // namespace
}  // namespace polyreme::e2e
