// Figures, tables, what is written, and the comparison of two results.

#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "deploy/bench/compare.h"
#include "deploy/bench/conditions.h"
#include "deploy/bench/figures.h"
#include "deploy/bench/report.h"
#include "deploy/bench/roofline.h"
#include "deploy/bench/server_watch.h"
#include "deploy/bench/subprocess.h"
#include "deploy/bench/text_table.h"

namespace polyreme::bench {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Outcome = RequestRecord::Outcome;

constexpr int64_t kMs = 1'000'000;

// Sent at `at`, first token after `ttft`, `tokens` in all with `gap` between them; milliseconds.
RequestRecord Record(int64_t at, int64_t ttft, int64_t gap, int32_t tokens) {
  RequestRecord record;
  record.outcome = Outcome::kDone;
  record.intended_ns = record.sent_ns = at * kMs;
  record.first_ns = (at + ttft) * kMs;
  record.gaps_ns.assign(static_cast<size_t>(tokens - 1), gap * kMs);
  record.end_ns = record.first_ns + gap * (tokens - 1) * kMs;
  record.num_chunks = record.output_tokens = tokens;
  record.prompt_tokens = 10;
  record.has_usage = true;
  return record;
}

TEST(Slo, ReadsUnitsAndNames) {
  const auto slo = ParseSlo("ttft:450ms,tpot:40,e2el:2.5s");
  ASSERT_TRUE(slo.ok());
  EXPECT_EQ(slo->ttft_ms, 450);
  EXPECT_EQ(slo->tpot_ms, 40);
  EXPECT_EQ(slo->e2el_ms, 2500);
  EXPECT_EQ(ParseSlo("ttft:1 tpot:2")->tpot_ms, 2);
  for (const std::string text : {"", "ttft", "ttft:", "ttft:x", "ttft:-1", "itl:3", "ttft:1h"}) {
    EXPECT_FALSE(ParseSlo(text).ok()) << text;
  }
}

TEST(Figures, AreThoseOfTheRecords) {
  LoadResult result;
  result.records = {Record(0, 100, 10, 11), Record(500, 300, 20, 21)};
  RequestRecord failed;
  failed.outcome = Outcome::kFailed;
  failed.error = "HTTP 503: full after 17 ms";
  result.records.push_back(failed);
  failed.error = "HTTP 503: full after 23 ms";
  result.records.push_back(failed);
  RequestRecord cancelled;
  cancelled.outcome = Outcome::kCancelled;
  result.records.push_back(cancelled);
  result.records.emplace_back();  // not sent
  result.seconds = 1.2;
  const LoadFigures f = FiguresOf(result, *ParseSlo("ttft:200ms,tpot:15ms"));
  EXPECT_EQ(f.requests, 5);
  EXPECT_EQ(f.completed, 2);
  EXPECT_EQ(f.failed, 2);
  EXPECT_EQ(f.cancelled, 1);
  EXPECT_EQ(f.output_tokens, 32);
  EXPECT_DOUBLE_EQ(f.output_per_second, 32 / 1.2);
  EXPECT_DOUBLE_EQ(f.total_per_second, 52 / 1.2);
  EXPECT_DOUBLE_EQ(f.ttft.mean(), 200);
  EXPECT_DOUBLE_EQ(f.tpot.median(), 15);
  EXPECT_DOUBLE_EQ(f.latency.max(), 700);
  EXPECT_EQ(f.itl.count(), 30);
  EXPECT_EQ(f.good, 1);
  EXPECT_DOUBLE_EQ(f.goodput(), 1 / 1.2);
  EXPECT_DOUBLE_EQ(f.good_share(), 0.2);
  ASSERT_EQ(f.errors.size(), 1u);
  EXPECT_EQ(f.errors.begin()->second.count, 2);
  EXPECT_EQ(f.errors.begin()->second.example, "HTTP 503: full after 17 ms");
  EXPECT_THAT(TokensOverTime(result.records), ElementsAre(11 + 10 + 0.0, 11));
}

TEST(TextTable, IsOneTableInThreeSpellings) {
  TextTable table;
  table.columns = {{"name, or so", 0}, {"ms", 1}};
  table.rows = {{"a", 1.25}, {"say \"b\"", std::numeric_limits<double>::quiet_NaN()}};
  EXPECT_EQ(table.Text(), "name, or so   ms\na            1.2\nsay \"b\"        -\n");
  EXPECT_EQ(table.Markdown(), "| name, or so | ms |\n|---|---|\n| a | 1.2 |\n| say \"b\" | - |\n");
  EXPECT_EQ(table.Csv(), "\"name, or so\",ms\na,1.25\n\"say \"\"b\"\"\",\n");
}

TEST(CacheUsage, IsFoundInEveryServersMetrics) {
  EXPECT_DOUBLE_EQ(CacheUsageOf("# HELP polyreme_kv_cache_usage_perc x\n"
                                "polyreme_kv_cache_usage_perc{model_name=\"a\"} 0.25\n"),
                   0.25);
  EXPECT_DOUBLE_EQ(CacheUsageOf("vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"b} c\"} 0.5\n"
                                "vllm:kv_cache_usage_perc{engine=\"1\"} 0.75\n"),
                   0.75);
  EXPECT_DOUBLE_EQ(CacheUsageOf("llamacpp:kv_cache_usage_ratio 0.125"), 0.125);
  EXPECT_TRUE(std::isnan(CacheUsageOf("vllm:kv_cache_usage_perc_other 3\nx 1\n")));
  EXPECT_TRUE(std::isnan(CacheUsageOf("sglang:token_usage{} not-a-number\n")));
  EXPECT_TRUE(std::isnan(CacheUsageOf("")));
}

TEST(Roofline, ADecodeStepReadsWeightsOncePerMicroBatchAndEachCache) {
  plan::ModelSpec spec;
  spec.num_layers = 2, spec.width = 8, spec.vocabulary = 16;
  spec.num_query_heads = 2, spec.num_kv_heads = 1, spec.head_dim = 4, spec.ffn_width = 16;
  const Roofline roofline(spec, 2, 4);
  const Cost one = roofline.DecodeCost(1, 1, 0);
  EXPECT_DOUBLE_EQ(one.bytes, roofline.weight_bytes());
  const Cost more = roofline.DecodeCost(8, 2, 100);
  EXPECT_DOUBLE_EQ(more.bytes,
                   2 * roofline.weight_bytes() + 800 * roofline.cache_bytes_per_token());
  EXPECT_DOUBLE_EQ(more.operations, 8 * one.operations + 800 * 4.0 * 2 * 2 * 4);
}

Report Made(const std::string& model, std::vector<double> rates) {
  Report report;
  report.kind = "sweep";
  report.title = "t";
  report.settings.Set("model", model);
  report.settings.Set("dtype", "float32");
  report.conditions.commit = "abc";
  report.points.push_back({"concurrency 4", {}});
  for (const double rate : rates) {
    report.points[0].rounds.push_back(
        {{"output_tok_per_s", rate}, {"ttft_p50_ms", std::nan("")}, {"client_cores", 0.1}});
  }
  report.table.columns = {{"a", 0}};
  report.table.rows = {{1.0}};
  return report;
}

std::vector<double> RowOf(const Comparison& comparison, size_t row) {
  std::vector<double> values;
  for (const TextTable::Cell& cell : comparison.table.rows[row]) {
    if (const double* value = std::get_if<double>(&cell); value != nullptr)
      values.push_back(*value);
  }
  return values;
}

TEST(Compare, MediansSpreadsAndChangeAreRight) {
  const auto comparison =
      Compare(Made("m", {100, 90, 110}).ToJson(), Made("m", {130, 120, 125}).ToJson(), false);
  ASSERT_TRUE(comparison.ok()) << comparison.status();
  ASSERT_EQ(comparison->table.rows.size(), 1u) << "what neither has, and the client's, is left out";
  EXPECT_THAT(RowOf(*comparison, 0), ElementsAre(90, 100, 110, 120, 125, 130, 25, 20, 8));
  EXPECT_THAT(comparison->text, HasSubstr("beyond noise"));
  EXPECT_THAT(comparison->text, Not(HasSubstr("UNLIKE")));
}

TEST(Compare, RangesThatMeetAreNoise) {
  const Json a = Made("m", {100, 90, 110}).ToJson();
  EXPECT_THAT(Compare(a, Made("m", {109, 120, 125}).ToJson(), false)->text,
              HasSubstr("within noise"));
  EXPECT_THAT(Compare(a, Made("m", {300}).ToJson(), false)->text, HasSubstr("noise unknown"));
}

TEST(Compare, UnlikeRunsAreRefusedUnlessForcedAndThenItSaysSo) {
  const Json a = Made("m", {100}).ToJson();
  Report other = Made("n", {100});
  other.settings.Set("lengths", "512");
  const Json b = other.ToJson();
  EXPECT_THAT(Unlikenesses(a, b),
              ElementsAre("model: m against n", "lengths: unknown against 512"));
  EXPECT_THAT(Unlikenesses(a, a), IsEmpty());
  const auto refused = Compare(a, b, false);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused.status()));
  EXPECT_THAT(Message(refused.status()), HasSubstr("model: m against n"));
  const auto forced = Compare(a, b, true);
  ASSERT_TRUE(forced.ok());
  EXPECT_THAT(forced->text, HasSubstr("UNLIKE"));
}

TEST(Compare, WhatIsNoResultIsRefused) {
  const Json a = Made("m", {100}).ToJson();
  for (
      const std::string text :
      {"{}", "[]", "3", R"({"schema":"polyreme.bench/1"})",
       R"({"schema":"polyreme.bench/1","kind":"sweep","points":[{}],"settings":{},"conditions":{}})",
       R"({"schema":"polyreme.bench/1","kind":"sweep","points":[{"name":"a","rounds":[3]}],"settings":{},"conditions":{}})"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Compare(a, *Json::Parse(text), true).status())) << text;
  }
  EXPECT_TRUE(absl::IsNotFound(ReadResult("/nowhere/result.json").status()));
}

class Written : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fmt::format("{}polyreme-bench-report-{}", testing::TempDir(), getpid());
    std::filesystem::remove_all(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Read(const std::string& name) const {
    std::ifstream file(folder_ + "/" + name);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
  }
  std::string folder_;
};

TEST_F(Written, EverythingIsThereAndIsReadAgain) {
  Report report = Made("m", {1, 2, 3});
  report.conditions = GatherConditions("polyreme bench sweep m", "polyreme 0");
  report.each_request = [](const std::function<void(const Json&)>& take) {
    take(Json::MakeObject({{"index", 0}}));
    take(Json::MakeObject({{"index", 1}}));
  };
  plot::Figure figure;
  figure.name = "throughput";
  figure.series.push_back({.title = "s", .x = {1, 2}, .y = {3, 4}});
  report.figures.push_back(figure);
  const auto said = WriteReport(report, folder_);
  ASSERT_TRUE(said.ok()) << said.status();
  EXPECT_EQ(Read("requests.jsonl"), "{\"index\":0}\n{\"index\":1}\n");
  EXPECT_EQ(Read("table.csv"), "a\n1\n");
  EXPECT_THAT(Read("report.md"), HasSubstr("`polyreme bench sweep m`"));
  EXPECT_THAT(Read("report.md"), HasSubstr("plots/throughput.svg"));
  EXPECT_TRUE(std::filesystem::exists(folder_ + "/plots/throughput.dat"));
  EXPECT_TRUE(std::filesystem::exists(folder_ + "/plots/throughput.gp"));
  const auto again = ReadResult(folder_);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->Dump(), report.ToJson().Dump());
  for (const char* name : {"date", "command", "commit", "hardware", "driver", "roofline"}) {
    EXPECT_NE(again->Find("conditions")->Find(name)->as_string(), "") << name;
  }
}

TEST_F(Written, AFileInTheWayIsNamed) {
  std::ofstream(folder_) << "x";
  EXPECT_THAT(Message(WriteReport(Made("m", {1}), folder_).status()), HasSubstr(folder_));
}

TEST(OutputOf, IsWhatTheProgramPrintsOrWhyNot) {
  EXPECT_EQ(*OutputOf("echo", {"a b"}, absl::Seconds(20), false), "a b\n");
  EXPECT_TRUE(absl::IsUnavailable(OutputOf("false", {}, absl::Seconds(20), false).status()));
  EXPECT_TRUE(
      absl::IsUnavailable(OutputOf("/no/such/program", {}, absl::Seconds(20), false).status()));
  EXPECT_TRUE(
      absl::IsDeadlineExceeded(OutputOf("sleep", {"60"}, absl::Milliseconds(50), false).status()));
}

}  // namespace
}  // namespace polyreme::bench
