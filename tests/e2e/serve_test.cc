// The faces of the real binary: goldens over HTTP, chats, counters, and a client that leaves.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "tests/coordinator/api/raw_client.h"
#include "tests/e2e/launched_cluster.h"

namespace polyreme::e2e {
namespace {

using ::testing::HasSubstr;

// Greedy decoding follows the reference up to the first step at which two tokens are nearly equal.
constexpr double kMarginMin = 1e-3;

Json ReadJson(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  absl::StatusOr<Json> parsed = Json::Parse(text.str());
  EXPECT_TRUE(parsed.ok()) << path << ": " << parsed.status();
  return parsed.ok() ? *std::move(parsed) : Json();
}

// Token ids up to, not including, the first step whose margin is too small to compare.
std::vector<int64_t> ComparableTokens(const Json& golden) {
  std::vector<int64_t> ids;
  const Json::Array& margins = golden.Find("margins")->as_array();
  for (size_t i = 0; i < margins.size() && margins[i].as_double() >= kMarginMin; ++i) {
    ids.push_back(golden.Find("completion_ids")->as_array()[i].as_int());
  }
  return ids;
}

std::vector<int64_t> TokenIds(const Json& response) {
  std::vector<int64_t> ids;
  const Json* tokens = response.Find("choices")->as_array()[0].Find("token_ids");
  EXPECT_NE(tokens, nullptr) << response.Dump();
  if (tokens != nullptr && tokens->is_array()) {
    for (const Json& id : tokens->as_array()) ids.push_back(id.as_int());
  }
  return ids;
}

void ExpectBeginsWith(std::vector<int64_t> got, const std::vector<int64_t>& want) {
  // The reference keeps the end-of-sequence token that a completion leaves out.
  got.resize(std::min(got.size(), want.size()));
  std::vector<int64_t> head(want.begin(), want.begin() + static_cast<ptrdiff_t>(got.size()));
  EXPECT_EQ(got, head);
  EXPECT_GE(got.size() + 1, want.size());
}

class Serve : public testing::Test {
 protected:
  static void SetUpTestSuite() { cluster_ = new Cluster(StartCluster({}, {"-tp", "2"})); }
  static void TearDownTestSuite() {
    EXPECT_EQ(cluster_->Stop(), 0) << cluster_->program->output();
    delete cluster_;
  }
  static Cluster* cluster_;
};
Cluster* Serve::cluster_ = nullptr;

TEST_F(Serve, EachRankTookOfItsDeviceWhatWasPredictedToTheByte) {
  const std::string log = cluster_->program->output();
  const std::regex line(
      R"(ready: rank (\d+): predicted ([\d,]+) bytes \(weights ([\d,]+)\), measured ([\d,]+) \(weights ([\d,]+)\): \+0\.00 %)");
  int ranks = 0;
  for (std::sregex_iterator found(log.begin(), log.end(), line), end; found != end; ++found) {
    ++ranks;
    EXPECT_EQ((*found)[2], (*found)[4]) << "rank " << (*found)[1];
    EXPECT_EQ((*found)[3], (*found)[5]) << "rank " << (*found)[1];
  }
  EXPECT_EQ(ranks, 2) << log;
}

TEST_F(Serve, CompletionsFollowTheFloat32Reference) {
  const Json goldens = ReadJson(std::string(kDemoModel) + "/golden_greedy_fp32.json");
  for (const Json& golden : goldens.as_array()) {
    const std::vector<int64_t> want = ComparableTokens(golden);
    ASSERT_FALSE(want.empty());
    const Json response = cluster_->Post(
        "/v1/completions", Json::MakeObject({{"model", "demo-model"},
                                             {"prompt", golden.Find("prompt")->as_string()},
                                             {"max_tokens", static_cast<int64_t>(want.size())},
                                             {"temperature", 0},
                                             {"return_token_ids", true}}));
    ExpectBeginsWith(TokenIds(response), want);
  }
}

TEST_F(Serve, ChatsFollowTheFloat32Reference) {
  const Json goldens = ReadJson(std::string(kDemoModel) + "/golden_chat_fp32.json");
  for (const Json& golden : goldens.as_array()) {
    const std::vector<int64_t> want = ComparableTokens(golden);
    const Json response = cluster_->Post(
        "/v1/chat/completions", Json::MakeObject({{"model", "demo-model"},
                                                  {"messages", *golden.Find("messages")},
                                                  {"max_tokens", static_cast<int64_t>(want.size())},
                                                  {"temperature", 0},
                                                  {"return_token_ids", true}}));
    ExpectBeginsWith(TokenIds(response), want);
    EXPECT_EQ(response.Find("usage")->Find("prompt_tokens")->as_int(),
              std::ssize(golden.Find("prompt_ids")->as_array()));
  }
}

TEST_F(Serve, PlansRunAheadOfTokens) {
  cluster_->Post("/v1/completions", Json::MakeObject({{"model", "demo-model"},
                                                      {"prompt", "def f("},
                                                      {"max_tokens", 40},
                                                      {"ignore_eos", true}}));
  const std::string metrics = cluster_->Get("/metrics");
  EXPECT_THAT(metrics, HasSubstr("polyreme_"));
  EXPECT_THAT(metrics, HasSubstr("in_flight"));
}

TEST_F(Serve, BadInputIsRefusedAndTheEngineGoesOn) {
  cluster_->Post("/v1/completions",
                 Json::MakeObject({{"model", "demo-model"}, {"prompt", "x"}, {"temperature", -1}}),
                 400);
  cluster_->Post("/v1/completions", Json::MakeObject({{"model", "nobody"}, {"prompt", "x"}}), 404);
  EXPECT_THAT(cluster_->Get("/v1/models"), HasSubstr("demo-model"));
  cluster_->Get("/health");
}

TEST_F(Serve, ClientThatLeavesFreesItsPlace) {
  {
    api::RawClient client(cluster_->port);
    client.Send(api::PostJson("/v1/completions",
                              R"({"model":"demo-model","prompt":"def f(","max_tokens":4000,)"
                              R"("ignore_eos":true,"stream":true})"));
    client.ReadUntil("data: ");
    client.Close();
  }
  // The place is free within a step, so this answer does not wait for 4000 tokens of another.
  std::string metrics;
  for (int i = 0; i < 200; ++i) {
    metrics = cluster_->Get("/metrics");
    if (metrics.find("polyreme_num_requests_running{model_name=\"demo-model\"} 0") !=
        std::string::npos)
      return;
  }
  ADD_FAILURE() << "the request still runs:\n" << metrics;
}

// Its own cluster, as it ends it.
TEST(ServeEnds, TermLetsWhatRunsFinishAndTurnsNewRequestsAway) {
  Cluster cluster = StartCluster({}, {"-tp", "2"});
  ASSERT_NE(cluster.port, 0);
  api::RawClient client(cluster.port);
  client.Send(api::PostJson("/v1/completions",
                            R"({"model":"demo-model","prompt":"def f(","max_tokens":1000,)"
                            R"("ignore_eos":true,"stream":true,)"
                            R"("stream_options":{"include_usage":true}})"));
  client.ReadUntil("data: ");
  cluster.program->Signal(SIGTERM);
  const std::string one_more =
      api::PostJson("/v1/completions", R"({"model":"demo-model","prompt":"x","max_tokens":1})");
  int32_t code = 200;
  while (code == 200) code = api::Exchange(cluster.port, one_more).code;
  EXPECT_EQ(code, 503);
  const std::string stream = client.ReadUntil("data: [DONE]");
  EXPECT_THAT(stream, HasSubstr("\"finish_reason\":\"length\""));
  EXPECT_THAT(stream, HasSubstr("\"completion_tokens\":1000"));
  EXPECT_THAT(stream, HasSubstr("data: [DONE]"));
  EXPECT_EQ(cluster.program->WaitForExit(absl::Seconds(15)), 0) << cluster.program->output();
}

}  // namespace
}  // namespace polyreme::e2e
