// That the benches of whole steps run from end to end on CPU, count right, and give each figure
// with its roofline; and that scores are what a forward pass says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "deploy/bench/bench_score.h"
#include "deploy/bench/bench_step.h"
#include "deploy/bench/bench_throughput.h"
#include "parallel/base/json.h"
#include "parallel/base/limits.h"
#include "parallel/plan/shard_plan.h"
#include "parallel/plan/topology.h"
#include "worker/run/rank_memory.h"

namespace polyreme::bench {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string Model(const std::string& name) {
  return std::string(POLYREME_SOURCE_DIR) + "/tests/data/models/" + name;
}

ClusterOptions Cluster(const Layout& layout) {
  ClusterOptions cluster;
  cluster.model = Model("iquestcoder");
  cluster.layout = layout;
  cluster.max_num_batched_tokens = 32;
  return cluster;
}

constexpr Layout kLayouts[] = {{1, 1}, {2, 1}, {1, 2}};

TEST(BenchStep, GivesEachBatchAndPromptWithItsShareOnEachLayout) {
  for (const Layout& layout : kLayouts) {
    BenchStepOptions options;
    options.cluster = Cluster(layout);
    options.batches = {1, 5};
    options.prompts = {16, 50};
    options.context = 40;
    options.num_steps = 8;
    options.num_rounds = 1;
    std::string table;
    const absl::Status status = RunBenchStep(options, &table);
    ASSERT_TRUE(status.ok()) << Message(status);
    for (const char* part :
         {"GB/s", "decode 1 x 40", "decode 5 x 40", "prompt 16", "prompt 50", " %\n"}) {
      EXPECT_THAT(table, HasSubstr(part));
    }
    EXPECT_THAT(table, Not(HasSubstr("nan")));
    EXPECT_THAT(table, Not(HasSubstr("inf")));
  }
}

TEST(BenchStep, MakesWeightsUpFromAConfigAlone) {
  const std::string directory = testing::TempDir() + "/bench_dummy_model";
  std::filesystem::create_directories(directory);
  std::filesystem::copy_file(Model("iquestcoder") + "/config.json", directory + "/config.json",
                             std::filesystem::copy_options::overwrite_existing);
  BenchStepOptions options;
  options.cluster = Cluster({2, 1});
  options.cluster.model = directory;
  options.cluster.format = weights::LoadFormat::kDummy;
  options.batches = {2};
  options.prompts = {16};
  options.context = 20;
  options.num_steps = 4;
  std::string table;
  const absl::Status status = RunBenchStep(options, &table);
  ASSERT_TRUE(status.ok()) << Message(status);
  EXPECT_THAT(table, HasSubstr("random weights"));
}

TEST(BenchStep, RefusesWhatTheModelCannotHold) {
  BenchStepOptions options;
  options.cluster = Cluster({1, 1});
  options.context = 250;
  std::string table;
  EXPECT_EQ(RunBenchStep(options, &table).code(), absl::StatusCode::kInvalidArgument);
  options.context = 10;
  options.batches = {0};
  EXPECT_EQ(RunBenchStep(options, &table).code(), absl::StatusCode::kInvalidArgument);
}

TEST(BenchThroughput, DrawsEveryTokenOfEveryRequestOnEachLayout) {
  for (const Layout& layout : kLayouts) {
    BenchThroughputOptions options;
    options.cluster = Cluster(layout);
    options.num_prompts = 9;
    options.input_tokens = 37;
    options.output_tokens = 11;
    options.max_num_seqs = 4;
    std::string table;
    ThroughputResult result;
    const absl::Status status = RunBenchThroughput(options, &table, &result);
    ASSERT_TRUE(status.ok()) << Message(status);
    EXPECT_EQ(result.prompt_tokens, 9 * 37);
    EXPECT_EQ(result.output_tokens, 9 * 11);
    EXPECT_GE(result.steps, 3 * 11);  // three rounds of at most four
    EXPECT_GT(result.seconds, 0);
    EXPECT_THAT(table, HasSubstr("9 requests of 37 + 11 tokens, at most 4 at once"));
    EXPECT_THAT(table, Not(HasSubstr("nan")));
    EXPECT_THAT(table, Not(HasSubstr("inf")));
  }
}

TEST(BenchThroughput, RefusesMoreTokensThanPositions) {
  BenchThroughputOptions options;
  options.cluster = Cluster({1, 1});
  options.input_tokens = 200;
  options.output_tokens = 100;
  std::string table;
  EXPECT_EQ(RunBenchThroughput(options, &table, nullptr).code(),
            absl::StatusCode::kInvalidArgument);
}

// The tiny models' golden file has greedy tokens and their log-probabilities.
TEST(BenchScore, GivesTheLogProbabilitiesOfTheGoldenTokens) {
  std::ifstream file(Model("iquestcoder") + "/golden.json");
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto golden = Json::Parse(text);
  ASSERT_TRUE(golden.ok()) << Message(golden.status());
  const std::string in = testing::TempDir() + "/score_in.jsonl";
  const std::string out = testing::TempDir() + "/score_out.jsonl";
  const Json::Array& prompts = golden->Find("prompts")->as_array();
  {
    std::ofstream lines(in);
    for (const Json& prompt : prompts) {
      Json tokens = *prompt.Find("ids");
      for (const Json& id : prompt.Find("greedy_ids")->as_array()) tokens.Append(id);
      lines << Json::MakeObject({{"tokens", tokens}}).Dump() << '\n';
    }
  }
  BenchScoreOptions options;
  options.cluster = Cluster({1, 1});
  options.input = in;
  options.output = out;
  std::string said;
  const absl::Status status = RunBenchScore(options, &said);
  ASSERT_TRUE(status.ok()) << Message(status);
  std::ifstream lines(out);
  for (const Json& prompt : prompts) {
    std::string line;
    ASSERT_TRUE(std::getline(lines, line));
    const auto score = Json::Parse(line);
    ASSERT_TRUE(score.ok()) << Message(score.status());
    const Json::Array& logprobs = score->Find("logprobs")->as_array();
    const size_t prompt_size = prompt.Find("ids")->as_array().size();
    const Json::Array& expected = prompt.Find("greedy_logprobs")->as_array();
    ASSERT_EQ(logprobs.size(), prompt_size + expected.size() - 1);
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(logprobs[prompt_size - 1 + i].as_double(), expected[i].as_double(), 2e-4);
    }
    EXPECT_EQ(score->Find("top")->as_array().size(), 20u);
  }
}

TEST(BenchScore, NamesTheLineThatIsWrong) {
  const std::string in = testing::TempDir() + "/score_bad.jsonl";
  std::ofstream(in) << "{\"tokens\": [1, 2]}\n{\"tokens\": [1, 512]}\n";
  BenchScoreOptions options;
  options.cluster = Cluster({1, 1});
  options.input = in;
  options.output = testing::TempDir() + "/score_bad_out.jsonl";
  std::string said;
  const absl::Status status = RunBenchScore(options, &said);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("score_bad.jsonl:2"));
}

step::StepLimits LimitsOf(const plan::ModelSpec& spec) {
  return {.num_slots = 8,
          .num_blocks = 1,
          .tokens_per_block = kTokensPerBlock,
          .max_step_tokens = 64,
          .max_step_samples = 8,
          .max_model_len = 64,
          .vocabulary = static_cast<int32_t>(spec.vocabulary),
          .max_steps_in_flight = 3};
}

// That a cache is as large as the one formula says: with one block more, some rank would take more
// of its device than it may.
TEST(BlocksThatFit, AreThoseOfTheFormulaThatWorkersGoBy) {
  const absl::StatusOr<plan::ModelSpec> spec = plan::ReadModelSpec(Model("iquestcoder"));
  ASSERT_TRUE(spec.ok()) << spec.status();
  for (const Layout& layout : {Layout{1, 1}, Layout{2, 1}, Layout{1, 2}}) {
    const step::StepLimits limits = LimitsOf(*spec);
    const ClusterOptions options = Cluster(layout);
    const BenchDevice large{.kind = {.gpu = true,
                                     .activations = DType::kBF16,
                                     .compute_capability = 90,
                                     .num_multiprocessors = 132},
                            .bytes = int64_t{8} << 30};
    std::vector<BenchDevice> devices(static_cast<size_t>(layout.ranks()), large);
    devices.back().bytes = int64_t{6} << 30;
    const absl::StatusOr<int32_t> blocks =
        BlocksThatFit(options, *spec, limits, devices, limits::kMaxBlocks);
    ASSERT_TRUE(blocks.ok()) << blocks.status();

    const auto topology = plan::Topology::Make(layout.stages, layout.shards);
    const auto plan = plan::ShardPlan::Make(
        *spec, *topology, {.layers_per_stage = {}, .tokens_per_block = kTokensPerBlock});
    ASSERT_TRUE(plan.ok()) << plan.status();
    bool one_more_fits = true;
    for (int32_t rank = 0; rank < layout.ranks(); ++rank) {
      const BenchDevice& device = devices[static_cast<size_t>(rank)];
      const run::RankMemory memory = run::RankMemoryOf({.spec = &*spec,
                                                        .plan = &*plan,
                                                        .rank = Rank{rank},
                                                        .limits = limits,
                                                        .device = device.kind,
                                                        .kv_dtype = DType::kBF16,
                                                        .head_chunk_samples = 8});
      const auto allowed = static_cast<int64_t>(0.92 * static_cast<double>(device.bytes));
      EXPECT_LE(memory.TotalBytes(*blocks), allowed) << rank;
      one_more_fits &= memory.TotalBytes(*blocks + 1) <= allowed;
    }
    EXPECT_FALSE(one_more_fits);
    EXPECT_EQ(*BlocksThatFit(options, *spec, limits, devices, 7), 7) << "no more than is wanted";
    devices.front().bytes = int64_t{1} << 20;
    const absl::Status refused = BlocksThatFit(options, *spec, limits, devices, 7).status();
    EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
    EXPECT_THAT(Message(refused), HasSubstr("rank 0"));
  }
}

}  // namespace
}  // namespace polyreme::bench
