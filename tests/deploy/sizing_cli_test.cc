// `polyreme plan` as it is called: flags, exit codes, messages.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "deploy/cli/commands.h"
#include "parallel/base/clock.h"
#include "parallel/base/json.h"

namespace polyreme::cli {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

struct Ran {
  int code = 0;
  std::string out;
  std::string err;
};

Ran Plan(const Arguments& arguments) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Ran ran;
  ran.code = RunPlan(arguments);
  ran.out = testing::internal::GetCapturedStdout();
  ran.err = testing::internal::GetCapturedStderr();
  return ran;
}

Json PlanJson(Arguments arguments, int code = 0) {
  arguments.push_back("--json");
  const Ran ran = Plan(arguments);
  EXPECT_EQ(ran.code, code) << ran.err;
  absl::StatusOr<Json> json = Json::Parse(ran.out);
  EXPECT_TRUE(json.ok()) << ran.out;
  return json.ok() ? *std::move(json) : Json();
}

int64_t IntOf(const Json& json, const char* key) {
  const Json* const value = json.Find(key);
  CHECK(value != nullptr && value->is_int(), "{}", key);
  return value->as_int();
}

constexpr char k40b[] = "iquest-coder-v1-40b";

TEST(PlanCommand, SaysFirstWhetherItFits) {
  const Ran fits = Plan({k40b, "--gpu", "a100-80g-sxm4:2", "-tp", "2"});
  EXPECT_EQ(fits.code, 0) << fits.err;
  EXPECT_THAT(fits.out, StartsWith("fits: iquest-coder-v1-40b on 2 x a100-80g-sxm4 (-tp 2), "));
  const Ran does_not = Plan({k40b, "--gpu", "a100-80g-sxm4"});
  EXPECT_EQ(does_not.code, 3);
  EXPECT_THAT(does_not.out, StartsWith("does not fit: iquest-coder-v1-40b on 1 x a100-80g-sxm4"));
  EXPECT_THAT(does_not.out, testing::ContainsRegex("lacks [0-9,]+ bytes .* on rank 0"));
  EXPECT_THAT(does_not.out, HasSubstr("the nearest that fit, cheapest first"));
}

TEST(PlanCommand, AnswersWithinASecond) {
  for (const Arguments& arguments :
       {Arguments{k40b, "--gpu", "h200"}, Arguments{k40b, "--gpu", "rtx-4090"},
        Arguments{"llama-3.1-405b", "--gpu", "h100-80g-sxm5:16", "-tp", "8", "-pp", "2"},
        Arguments{k40b, "--recommend", "--role", "farm", "--budget", "8"},
        Arguments{k40b, "--gpu", "h200:8", "-tp", "8", "--sweep"}}) {
    const absl::Time begin = MonotonicNow();
    const Ran ran = Plan(arguments);
    EXPECT_TRUE(ran.code == 0 || ran.code == 3) << ran.err;
    // A second where nothing else runs; this machine may be loaded, and built to look for errors.
    EXPECT_LT(MonotonicNow() - begin, absl::Seconds(20)) << arguments.back();
  }
}

TEST(PlanCommand, UnderstandsTheSpellingsOfServers) {
  const Json own = PlanJson({k40b, "--gpu", "h200:4", "-tp", "2", "-pp", "2", "--context", "8192",
                             "--max-num-seqs", "32", "--max-num-batched-tokens", "2048",
                             "--gpu-memory-utilization", "0.8"});
  EXPECT_EQ(own, PlanJson({k40b, "--gpu=h200:4", "--tensor-parallel-size", "2",
                           "--pipeline_parallel_size", "2", "--max-model-len", "8192",
                           "--max-running-requests", "32", "--chunked-prefill-size", "2048",
                           "--mem-fraction-static", "0.8"}));
  EXPECT_EQ(IntOf(own, "tensor_parallel_size"), 2);
  EXPECT_EQ(IntOf(own, "max_model_len"), 8192);
  EXPECT_EQ(IntOf(own, "max_num_seqs"), 32);
  EXPECT_EQ(own.Find("ranks")->as_array().size(), 4u);
}

TEST(PlanCommand, TurnsEachFlagIntoBytes) {
  const auto tokens = [](Arguments more) {
    more.insert(more.begin(), {k40b, "--gpu", "h200", "--context", "32768"});
    return IntOf(PlanJson(more), "kv_tokens");
  };
  const int64_t plain = tokens({});
  EXPECT_LT(tokens({"--gpu-memory-utilization", "0.85"}), plain);
  EXPECT_LT(tokens({"--max-num-batched-tokens", "32768"}), plain);
  EXPECT_GT(tokens({"--max-num-seqs", "8"}), plain);
  EXPECT_NEAR(double(tokens({"--kv-cache-dtype", "fp8"})), 2.0 * double(plain),
              0.001 * double(plain));
  EXPECT_GT(tokens({"--quantization", "fp8"}), 1.5 * double(plain));
  EXPECT_GT(tokens({"--quantization", "awq"}), tokens({"--quantization", "fp8"}));
  EXPECT_EQ(tokens({"--kv-cache-memory-bytes", "20G"}), 65536);
  EXPECT_EQ(tokens({"--num-gpu-blocks-override", "3000"}), 48000);
  EXPECT_EQ(tokens({"--block-size", "32"}) % 32, 0);
  const Ran quantised = Plan({k40b, "--gpu", "h200", "-q", "fp8", "--context", "8192"});
  EXPECT_THAT(quantised.out, HasSubstr("not served: fp8 weights are arithmetic only"));
}

TEST(PlanCommand, DealsTheGpusThatAreNamed) {
  EXPECT_EQ(IntOf(PlanJson({k40b, "--gpu", "h200:2"}), "tensor_parallel_size"), 2);
  // 28 query heads cannot be split over 8.
  const Json stages = PlanJson({"qwen2.5-coder-7b", "--gpu", "l4:8"});
  EXPECT_EQ(IntOf(stages, "tensor_parallel_size"), 4);
  EXPECT_EQ(IntOf(stages, "pipeline_parallel_size"), 2);
  const Ran contradiction = Plan({k40b, "--gpu", "h200:4", "-tp", "2"});
  EXPECT_EQ(contradiction.code, 2);
  EXPECT_THAT(contradiction.err, HasSubstr("are 2 ranks, --gpu names 4"));
}

TEST(PlanCommand, PlansOlderGpusInFloat16) {
  const Json json = PlanJson({k40b, "--gpu", "v100-32g-sxm2:4", "-pp", "4", "--context", "32768"});
  EXPECT_EQ(json.Find("dtype")->as_string(), "float16");
  const Ran asked = Plan(
      {k40b, "--gpu", "v100-32g-sxm2:4", "-pp", "4", "--dtype", "bfloat16", "--context", "32768"});
  EXPECT_THAT(asked.out, HasSubstr("not served: v100-32g-sxm2 has no bfloat16"));
}

TEST(PlanCommand, SaysPredictedWhereNothingWasMeasured) {
  EXPECT_THAT(Plan({k40b, "--gpu", "a100-80g-sxm4:2", "-tp", "2"}).out,
              HasSubstr("\npredicted: no GPU of family ampere was measured"));
  const Ran hopper = Plan({k40b, "--gpu", "h200"});
  EXPECT_THAT(hopper.out, HasSubstr("on 2026-11-22 (docs/benchmarks/h200.md)"));
}

TEST(PlanCommand, TakesAFolderAConfigOrAName) {
  const std::string folder = std::string(POLYREME_SOURCE_DIR) + "/deploy/bench/configs/" + k40b;
  const int64_t by_name = IntOf(PlanJson({k40b, "--gpu", "h200"}), "kv_tokens");
  EXPECT_EQ(IntOf(PlanJson({folder, "--gpu", "h200"}), "kv_tokens"), by_name);
  EXPECT_EQ(IntOf(PlanJson({folder + "/config.json", "--gpu", "h200"}), "kv_tokens"), by_name);
}

TEST(PlanCommand, OnCpuNeedsACacheByHand) {
  const Ran without = Plan({"iquest-coder-v1-7b", "--device", "cpu"});
  EXPECT_EQ(without.code, 2);
  EXPECT_THAT(without.err, HasSubstr("--kv-cache-memory-bytes"));
  const Json json = PlanJson({"iquest-coder-v1-7b", "--device", "cpu", "--context", "8192",
                              "--kv-cache-memory-bytes", "4G"});
  EXPECT_EQ(json.Find("dtype")->as_string(), "float32");
  EXPECT_EQ(json.Find("speed"), nullptr);
  PlanJson({"iquest-coder-v1-7b", "--device", "cpu", "--kv-cache-memory-bytes", "4G"}, 3);
}

TEST(PlanCommand, RefusesWhatMakesNoSense) {
  struct Wrong {
    Arguments arguments;
    const char* says;
  };
  const Wrong wrongs[] = {
      {{}, "expected one MODEL"},
      {{k40b}, "expected --gpu NAME[:N]"},
      {{k40b, "llama-3.1-8b", "--gpu", "h200"}, "expected one MODEL, got 2"},
      {{k40b, "--gpu", "abacus"}, "--gpu: expected a GPU of"},
      {{k40b, "--gpu", "h200:0"}, "NAME:N"},
      {{"no-such-model", "--gpu", "h200"}, "no preset"},
      {{k40b, "--gpu", "h200", "-tp", "3"}, "40 query heads cannot be split over 3"},
      {{k40b, "--gpu", "h200", "--context", "200000"}, "more than the model's 131072"},
      {{k40b, "--gpu", "h200", "--gpu-memory-utilization", "1.5"}, "--gpu-memory-utilization"},
      {{k40b, "--gpu", "h200", "--quantization", "int3"}, "--quantization"},
      {{k40b, "--gpu", "h200", "--no-such-flag"}, "--no-such-flag"},
      {{k40b, "--recommend", "--role", "ide"}, "--budget"},
      {{k40b, "--recommend", "--role", "boss", "--budget", "3"}, "expected a role of ide"},
      {{k40b, "--recommend", "--role", "ide", "--budget", "nan"}, "--budget"},
      {{k40b, "--gpu", "h200", "--gpu-file", "/no/such/file"}, "/no/such/file"},
      {{k40b, "--claims", "/no/such/file"}, "/no/such/file"},
      {{k40b, "--device", "cpu", "--kv-cache-memory-bytes", "1G", "--sweep"}, "--sweep needs"},
  };
  for (const Wrong& wrong : wrongs) {
    const Ran ran = Plan(wrong.arguments);
    EXPECT_EQ(ran.code, 2) << wrong.says;
    EXPECT_THAT(ran.err, HasSubstr(wrong.says));
    EXPECT_EQ(ran.out, "") << wrong.says;
  }
}

TEST(PlanCommand, ListsGpusWithTheirSources) {
  const Ran list = Plan({"--gpu", "list"});
  EXPECT_EQ(list.code, 0);
  EXPECT_THAT(list.out, HasSubstr("NVIDIA A100 datasheet"));
  EXPECT_GE(PlanJson({"--gpu", "list"}).Find("gpus")->as_array().size(), 21u);
}

TEST(PlanCommand, SweepsIntoAFolder) {
  const std::string folder = testing::TempDir() + "/polyreme-plan-sweep";
  std::filesystem::remove_all(folder);
  const Ran ran = Plan({k40b, "--gpu", "a100-80g-sxm4:2", "-tp", "2", "--context", "32768",
                        "--sweep", "--output", folder});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("tp1pp2 w4a16 +"));
  for (const char* name : {"memory", "decode"}) {
    for (const char* ending : {"dat", "gp"}) {
      EXPECT_TRUE(std::filesystem::exists(
          fmt::format("{}/{}-2xa100-80g-sxm4-{}.{}", folder, k40b, name, ending)));
    }
  }
}

TEST(PlanCommand, CountsTokensForTheMoney) {
  const std::string file = testing::TempDir() + "/polyreme-plan-prices.json";
  std::ofstream(file)
      << R"({"currency": "EUR", "gpus": [{"name": "h200", "price_per_hour": 3.5}]})";
  const Arguments arguments = {k40b, "--gpu", "h200:2", "-tp", "2", "--gpu-file", file};
  EXPECT_THAT(Plan(arguments).out, HasSubstr("output tokens per EUR"));
  const Json json = PlanJson(arguments);
  const Json& row = json.Find("speed")->Find("offline")->as_array()[2];
  const double rate = row.Find("output_tokens_per_second")->Find("expected")->as_double();
  EXPECT_NEAR(double(IntOf(row, "output_tokens_per_currency_unit")), rate * 3600 / 7, 1);
}

TEST(PlanCommand, RecommendsForARole) {
  const Ran found = Plan({k40b, "--recommend", "--role", "api", "--budget", "4"});
  EXPECT_EQ(found.code, 0) << found.err;
  EXPECT_THAT(found.out, StartsWith("api: "));
  const Ran none = Plan({k40b, "--recommend", "--role", "farm", "--budget", "1"});
  EXPECT_EQ(none.code, 3);
  EXPECT_THAT(none.out, StartsWith("nothing within 1 GPU(s) serves"));
}

}  // namespace
}  // namespace polyreme::cli
