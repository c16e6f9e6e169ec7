// `polyreme bench` as a user runs it: against the demo model, against a server that is told what to
// do, and with input that is wrong.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "tests/deploy/fake_server.h"
#include "tests/e2e/launched_cluster.h"

namespace polyreme::e2e {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr absl::Duration kPatience = absl::Seconds(120);

struct Ended {
  int code = -1;
  std::string output;
};
Ended RunBench(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {POLYREME_BINARY, "bench"});
  const auto program = Program::Start(arguments);
  Ended ended;
  ended.code = program->WaitForExit(kPatience).value_or(-1);
  ended.output = program->output();
  return ended;
}

class Bench : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = testing::TempDir() + "polyreme-bench-" + test->name();
    std::filesystem::remove_all(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Read(const std::string& name) const {
    std::ifstream file(folder_ + "/" + name);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
  }
  Json Result() const {
    absl::StatusOr<Json> json = Json::Parse(Read("result.json"));
    EXPECT_TRUE(json.ok()) << json.status();
    return json.ok() ? *std::move(json) : Json::MakeObject();
  }
  // A figure of a point's round.
  double Figure(const Json& result, size_t point, size_t round, const char* name) const {
    const Json* value =
        result.Find("points")->as_array()[point].Find("rounds")->as_array()[round].Find(name);
    EXPECT_TRUE(value != nullptr && value->is_number()) << name;
    return value != nullptr && value->is_number() ? value->as_double() : -1;
  }

  std::string folder_;
};

TEST_F(Bench, SweepOfAModelServesItMeasuresItAndLeavesNothingBehind) {
  const Ended ended = RunBench({"sweep", kDemoModel, "-tp", "2", "--concurrency", "1,3", "--rounds",
                                "2", "--num-prompts", "5", "--max-tokens", "12", "--ignore-eos",
                                "--output", folder_, "--", "--max-num-seqs", "8"});
  ASSERT_EQ(ended.code, 0) << ended.output;
  const Json result = Result();
  ASSERT_EQ(result.Find("points")->as_array().size(), 2u);
  for (size_t point = 0; point < 2; ++point) {
    for (size_t round = 0; round < 2; ++round) {
      EXPECT_EQ(Figure(result, point, round, "completed"), 5);
      EXPECT_EQ(Figure(result, point, round, "failed"), 0);
      EXPECT_EQ(Figure(result, point, round, "output_tokens"), 60);
      EXPECT_GT(Figure(result, point, round, "output_tok_per_s"), 0);
      EXPECT_GT(Figure(result, point, round, "ttft_p50_ms"), 0);
      EXPECT_GT(Figure(result, point, round, "memory_peak_bytes"), 30e6);
      EXPECT_GE(Figure(result, point, round, "kv_cache_usage_peak"), 0);
    }
  }
  const Json* settings = result.Find("settings");
  EXPECT_EQ(settings->Find("model")->as_string(), "demo-model");
  EXPECT_EQ(settings->Find("layout")->as_string(), "tp2pp1");
  const std::string roofline = result.Find("conditions")->Find("roofline")->as_string();
  EXPECT_THAT(roofline, HasSubstr("at best: reads"));
  EXPECT_THAT(ended.output, HasSubstr("roofline %"));
  const std::string requests = Read("requests.jsonl");
  EXPECT_EQ(std::count(requests.begin(), requests.end(), '\n'), 20);
  for (const char* name :
       {"report.md", "table.csv", "server.log", "plots/throughput.gp", "plots/latency.gp",
        "plots/percentiles.gp", "plots/over-time.gp", "plots/roofline.gp", "plots/roofline.dat"}) {
    EXPECT_NE(Read(name), "") << name;
  }
  EXPECT_THAT(ProcessesWith(std::string(kDemoModel) + " -tp 2 --max-num-seqs 8"), IsEmpty());

  const Ended same = RunBench({"compare", folder_, folder_ + "/result.json"});
  EXPECT_EQ(same.code, 0) << same.output;
  EXPECT_THAT(same.output, HasSubstr("within noise"));
  EXPECT_THAT(same.output, Not(HasSubstr("beyond noise")));
}

TEST_F(Bench, ServeMeasuresARunningServerAtARateAndByATrace) {
  Cluster cluster = StartCluster({}, {});
  const std::string url = fmt::format("http://127.0.0.1:{}", cluster.port);
  const Ended rate = RunBench({"serve", url, "--request-rate", "20", "--num-prompts", "12",
                               "--random-input-len", "16", "--random-output-len", "8",
                               "--vocab-size", "8192", "--ignore-eos", "--slo", "ttft:60s,tpot:60s",
                               "--output", folder_, "--percentile-metrics", "ttft,tpot,itl,e2el"});
  ASSERT_EQ(rate.code, 0) << rate.output;
  const Json result = Result();
  EXPECT_EQ(Figure(result, 0, 0, "completed"), 12);
  EXPECT_EQ(Figure(result, 0, 0, "output_tokens"), 96);
  EXPECT_EQ(Figure(result, 0, 0, "prompt_tokens"), 192);
  EXPECT_EQ(Figure(result, 0, 0, "good_share"), 1);
  EXPECT_THAT(rate.output, HasSubstr("goodput"));

  const std::string trace = folder_ + "/trace.jsonl";
  std::ofstream(trace) << "{\"timestamp\": 100, \"input_length\": 5, \"output_length\": 3}\n"
                          "{\"timestamp\": 400, \"input_length\": 7, \"output_length\": 4}\n";
  const Ended traced = RunBench({"serve", url, "--dataset-name", "trace", "--dataset-path", trace,
                                 "--vocab-size", "8192", "--ignore-eos", "--output", folder_});
  ASSERT_EQ(traced.code, 0) << traced.output;
  std::istringstream lines(Read("requests.jsonl"));
  std::vector<Json> requests;
  for (std::string line; std::getline(lines, line);) requests.push_back(*Json::Parse(line));
  ASSERT_EQ(requests.size(), 2u);
  EXPECT_EQ(requests[0].Find("intended_s")->as_double(), 0);
  EXPECT_NEAR(requests[1].Find("intended_s")->as_double(), 0.3, 1e-6);
  EXPECT_GE(requests[1].Find("sent_s")->as_double(), 0.3 - 1e-6);
  EXPECT_EQ(requests[0].Find("output_tokens")->as_int(), 3);
  EXPECT_EQ(requests[1].Find("prompt_tokens")->as_int(), 7);
  EXPECT_EQ(cluster.Stop(), 0);
}

TEST_F(Bench, ColdTellsReadyAndFirstToken) {
  const Ended ended =
      RunBench({"cold", kDemoModel, "--rounds", "1", "--evict-page-cache", "--output", folder_});
  ASSERT_EQ(ended.code, 0) << ended.output;
  const Json result = Result();
  const double ready = Figure(result, 0, 0, "exec_to_ready_s");
  EXPECT_GT(ready, 0);
  EXPECT_GT(Figure(result, 0, 0, "exec_to_first_token_s"), ready);
}

TEST_F(Bench, AnInterruptKeepsWhatWasMeasured) {
  bench::FakeServerOptions options;
  // The first three at once: the warm-up and two that are measured; the others never end.
  options.when = [](int64_t request, int32_t) {
    return request < 3 ? int64_t{0} : int64_t{600'000'000'000};
  };
  const bench::FakeServer server(options);
  const auto program = Program::Start({POLYREME_BINARY, "bench", "sweep", server.url(),
                                       "--concurrency", "2", "--rounds", "1", "--num-prompts", "10",
                                       "--max-tokens", "4", "--output", folder_});
  ASSERT_TRUE(program->WaitForLine("round 1 of 1", kPatience).has_value()) << program->output();
  // Two are done and two are under way once the server has begun five.
  for (int looks = 0; server.num_requests() < 5 && looks < 20000; ++looks) {
    ASSERT_FALSE(program->WaitForExit(absl::Milliseconds(5)).has_value()) << program->output();
  }
  ASSERT_EQ(server.num_requests(), 5);
  program->Signal(SIGINT);
  EXPECT_EQ(program->WaitForExit(kPatience), 130) << program->output();
  EXPECT_THAT(program->output(), HasSubstr("interrupted"));
  const Json result = Result();
  EXPECT_TRUE(result.Find("interrupted")->as_bool());
  EXPECT_EQ(Figure(result, 0, 0, "completed"), 2);
  EXPECT_EQ(Figure(result, 0, 0, "cancelled"), 2);
  EXPECT_EQ(Figure(result, 0, 0, "failed"), 0);
}

// What was measured is kept, nobody waits for the rest, and one sentence says why.
TEST_F(Bench, AServerThatDiesInMidSweepEndsItAndKeepsWhatWasMeasured) {
  // A process of its own, whose sockets end with it; it runs until its standard input ends.
  const auto server =
      Program::Start({"sh", "-c", "sleep 200 | exec " POLYREME_NULL_SERVER " 0 20"});
  const auto url = server->WaitForLine("http://", kPatience);
  ASSERT_TRUE(url.has_value()) << server->output();
  const auto program = Program::Start({POLYREME_BINARY, "bench", "sweep", "http://" + *url,
                                       "--concurrency", "1,2,4", "--rounds", "3", "--num-prompts",
                                       "30", "--max-tokens", "4", "--output", folder_});
  ASSERT_TRUE(program->WaitForLine("round 1 of 3, concurrency 2", kPatience).has_value())
      << program->output();
  kill(-server->pid(), SIGKILL);  // its whole group
  EXPECT_EQ(program->WaitForExit(kPatience), 1) << program->output();
  EXPECT_EQ(program->Count("polyreme bench: "), 1) << program->output();
  EXPECT_THAT(program->output(), HasSubstr("the server died in round 1 of 3, concurrency 2"));
  EXPECT_THAT(program->output(), HasSubstr("Connection refused"));
  const Json result = Result();
  ASSERT_NE(result.Find("points"), nullptr);
  ASSERT_EQ(result.Find("points")->as_array().size(), 2u) << "nothing was begun after that";
  EXPECT_EQ(Figure(result, 0, 0, "completed"), 30);
  EXPECT_EQ(Figure(result, 0, 0, "failed"), 0);
  EXPECT_GT(Figure(result, 1, 0, "completed"), 0);
  EXPECT_GT(Figure(result, 1, 0, "failed"), 0);
  EXPECT_NE(Read("report.md"), "");
}

TEST_F(Bench, AServerThatWasStartedAndDiesInMidSweepIsNamedWithItsLog) {
  const auto program = Program::Start({POLYREME_BINARY, "bench", "sweep", kDemoModel,
                                       "--no-roofline", "--concurrency", "1,2", "--rounds", "3",
                                       "--num-prompts", "20", "--max-tokens", "64", "--ignore-eos",
                                       "--output", folder_, "--", "--join-timeout", "78"});
  ASSERT_TRUE(program->WaitForLine("round 1 of 3, concurrency 2", kPatience).has_value())
      << program->output();
  const std::vector<pid_t> serving = program->Descendants("polyreme serve");
  ASSERT_EQ(serving.size(), 1u) << program->output();
  Strike(serving.front(), SIGKILL);
  EXPECT_EQ(program->WaitForExit(kPatience), 1) << program->output();
  EXPECT_EQ(program->Count("polyreme bench: "), 1) << program->output();
  EXPECT_THAT(program->output(), HasSubstr("server.log"));
  const Json result = Result();
  ASSERT_NE(result.Find("points"), nullptr);
  EXPECT_EQ(Figure(result, 0, 0, "completed"), 20);
  EXPECT_EQ(Figure(result, 0, 0, "failed"), 0);
  EXPECT_THAT(ProcessesWith("--join-timeout 78"), IsEmpty());
}

TEST_F(Bench, AnInterruptWhileTheServerStartsEndsIt) {
  const auto program = Program::Start({POLYREME_BINARY, "bench", "sweep", kDemoModel,
                                       "--no-roofline", "--", "--join-timeout", "77"});
  ASSERT_TRUE(program->WaitForLine("starting polyreme serve", kPatience).has_value());
  program->Signal(SIGINT);
  EXPECT_EQ(program->WaitForExit(kPatience), 130) << program->output();
  EXPECT_THAT(ProcessesWith("--join-timeout 77"), IsEmpty());
}

// One sentence, and no success.
void ExpectRefused(const std::vector<std::string>& arguments, const std::string& sentence) {
  const Ended ended = RunBench(arguments);
  EXPECT_NE(ended.code, 0) << ended.output;
  EXPECT_NE(ended.code, -1) << ended.output;
  EXPECT_THAT(ended.output, HasSubstr(sentence));
  EXPECT_THAT(ended.output, HasSubstr("polyreme bench: "));
}

TEST_F(Bench, BadInputEndsInOneSentence) {
  const bench::FakeServer server({});
  const std::string url = server.url();
  const std::string nobody = fmt::format("http://127.0.0.1:{}", FreePort());
  ExpectRefused({"sweep", nobody}, "Connection refused");
  ExpectRefused({"sweep", "https://127.0.0.1"}, "TLS");
  ExpectRefused({"sweep", "http://no-such-host.invalid"}, "no-such-host.invalid");
  ExpectRefused({"sweep", "/no/such/model"}, "neither a model's folder nor a URL");
  ExpectRefused({"sweep"}, "one URL or MODEL");
  ExpectRefused({"sweep", url, "--model", "other"}, "'other' is not served");
  ExpectRefused({"sweep", url, "-tp", "2"}, "for a MODEL that is started here");
  ExpectRefused({"sweep", url, "--concurrency", "0"}, "expected 1 to");
  ExpectRefused({"sweep", url, "--num-prompts", "0"}, "expected 1 to");
  ExpectRefused({"sweep", url, "--concurrency", "1,2,4", "--num-prompts", "1,2"},
                "one for each of 3 of --concurrency, got 2");
  ExpectRefused({"sweep", url, "--dataset-path", "/no/such/file"}, "/no/such/file");
  ExpectRefused({"sweep", url, "--max-tokens", "5000", "--num-prompts", "3"},
                "longer than the context");
  ExpectRefused({"serve", url}, "--vocab-size");
  ExpectRefused({"serve", url, "--vocab-size", "99", "--random-input-len", "4090",
                 "--random-output-len", "9", "--num-prompts", "2"},
                "longer than the context of 4096");
  ExpectRefused({"serve", url, "--dataset-name", "trace", "--vocab-size", "9"}, "--dataset-path");
  ExpectRefused({"serve", url, "--slo", "x:1"}, "--slo");
  ExpectRefused({"serve", url, "--extra-body", "["}, "--extra-body");
  ExpectRefused({"cold", url}, "needs a MODEL");
  ExpectRefused({"compare", folder_, folder_}, "no such file");
  ExpectRefused({"sweep", kDemoModel, "--no-roofline", "--", "--no-such-flag"}, "no-such-flag");
}

TEST_F(Bench, EachConcurrencyMayHaveItsOwnNumberOfPrompts) {
  const bench::FakeServer server({});
  const Ended ended = RunBench({"sweep", server.url(), "--concurrency", "1,4", "--rounds", "2",
                                "--num-prompts", "2,9", "--max-tokens", "4", "--output", folder_});
  ASSERT_EQ(ended.code, 0) << ended.output;
  EXPECT_THAT(ended.output, HasSubstr("2 to 9 prompts at each concurrency"));
  const Json result = Result();
  for (size_t round = 0; round < 2; ++round) {
    EXPECT_EQ(Figure(result, 0, round, "completed"), 2);
    EXPECT_EQ(Figure(result, 1, round, "completed"), 9);
  }
  EXPECT_THAT(result.Find("settings")->Find("prompts")->as_string(), HasSubstr("2,9 "));
}

TEST_F(Bench, ResultsOfUnlikeRunsAreNotComparedUnlessForced) {
  const bench::FakeServer server({});
  const auto sweep = [&](const std::string& folder, const std::string& tokens) {
    const Ended ended =
        RunBench({"sweep", server.url(), "--concurrency", "1", "--rounds", "1", "--num-prompts",
                  "2", "--max-tokens", tokens, "--output", folder});
    EXPECT_EQ(ended.code, 0) << ended.output;
  };
  sweep(folder_ + "/a", "4");
  sweep(folder_ + "/b", "8");
  ExpectRefused({"compare", folder_ + "/a", folder_ + "/b"}, "unlike in");
  const Ended forced = RunBench({"compare", folder_ + "/a", folder_ + "/b", "--force"});
  EXPECT_EQ(forced.code, 0) << forced.output;
  EXPECT_THAT(forced.output, HasSubstr("UNLIKE"));
}

TEST_F(Bench, PartsOfTheProgramWriteTheSameKindOfOutput) {
  const Ended ended = RunBench({"step", kDemoModel, "--batch", "1", "--context", "8", "--steps",
                                "4", "--prompt", "8", "--output", folder_});
  ASSERT_EQ(ended.code, 0) << ended.output;
  const Json result = Result();
  EXPECT_EQ(result.Find("kind")->as_string(), "step");
  EXPECT_GT(Figure(result, 0, 0, "median_us"), 0);
  EXPECT_THAT(result.Find("conditions")->Find("roofline")->as_string(), HasSubstr("at best"));
}

}  // namespace
}  // namespace polyreme::e2e
