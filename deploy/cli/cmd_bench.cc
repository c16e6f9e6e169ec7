// `polyreme bench`: each figure beside the roofline measured in the same run.

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "deploy/bench/bench_coordinator.h"
#include "deploy/bench/bench_ops.h"
#include "deploy/bench/bench_score.h"
#include "deploy/bench/bench_step.h"
#include "deploy/bench/bench_throughput.h"
#include "deploy/bench/report.h"
#include "deploy/bench/text_table.h"
#include "deploy/cli/bench_target.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/device_choice.h"
#include "deploy/cli/flags.h"
#include "parallel/base/json.h"
#include "parallel/plan/model_spec.h"

namespace polyreme::cli {
namespace {

constexpr char kUsage[] =
    "usage: polyreme bench WHAT [MODEL] [flags]\n\n"
    "A server from outside (each has its own --help):\n"
    "  sweep URL|MODEL   250 prompts at concurrencies 1 to 64, in rounds\n"
    "  serve URL|MODEL   requests by a rate, a trace or a concurrency; goodput\n"
    "  cold MODEL        from exec to ready to the first token\n"
    "  compare A B       two results, with their noise\n\n"
    "Parts of it, in this process:\n"
    "  ops [MODEL]       products, attention and norms of MODEL's sizes (default: the demo "
    "model's)\n"
    "  step MODEL        whole steps: decode at several batches, and prompts\n"
    "  throughput MODEL  many requests at once, through the scheduler, without HTTP\n"
    "  score MODEL       no figure: the log-probabilities of given tokens, to compare with others\n"
    "  coordinator       one step's planning, wire and commit with workers that answer at once\n"
    "  ceilings MODEL    what this machine could do at best, as a line of JSON\n\n"
    "Ranks are threads of this process; on GPUs each has one. Each figure stands beside its\n"
    "roofline, measured in the same run on the same threads or GPUs.";

struct BenchConfig {
  bench::ClusterOptions cluster;
  bench::BenchStepOptions step;
  bench::BenchThroughputOptions throughput;
  std::string input;
  std::string output;
  std::string load_format = "auto";
  std::string attention = "auto";
  std::string dtype = "auto";
  int32_t seed = 0;
  int32_t num_sequences = 256;
  std::vector<int64_t> batches;
  std::vector<int64_t> prompts;
  bool help = false;
};

void Complete(BenchConfig& config) {
  bench::ClusterOptions& cluster = config.cluster;
  const bool made = config.load_format == "dummy";
  cluster.format = made ? weights::LoadFormat::kDummy : weights::LoadFormat::kSafetensors;
  cluster.seed = static_cast<uint64_t>(config.seed);
  cluster.backend.attention = AttentionOf(config.attention);
}

// What --dtype means for a model stored in `stored`.
absl::StatusOr<DType> DTypeOf(const BenchConfig& config, DType stored) {
  return config.dtype == "auto" ? stored : ParseDType(config.dtype);
}

absl::StatusOr<bench::ClusterOptions> ClusterOf(const BenchConfig& config,
                                                const Arguments& operands) {
  if (operands.size() != 2) return InvalidArgument("bench {} needs a MODEL directory", operands[0]);
  bench::ClusterOptions cluster = config.cluster;
  cluster.model = operands[1];
  ASSIGN_OR_RETURN(const plan::ModelSpec spec, plan::ReadModelSpec(cluster.model));
  ASSIGN_OR_RETURN(cluster.backend.dtype, DTypeOf(config, spec.dtype));
  return cluster;
}

// What a bench prints, and the same as rows; without rows nothing is written.
struct Printed {
  std::string text;
  bench::TextTable rows;
};

absl::StatusOr<Printed> BenchOps(const BenchConfig& config, const Arguments& operands) {
  bench::BenchOpsOptions options;
  options.model = bench::DemoModelSizes();
  if (operands.size() > 1) {
    ASSIGN_OR_RETURN(options.model, plan::ReadModelSpec(operands[1]));
  }
  options.num_threads = config.cluster.num_threads;
  options.device = config.cluster.device;
  options.backend = config.cluster.backend;
  ASSIGN_OR_RETURN(options.backend.dtype, DTypeOf(config, options.model.dtype));
  options.shards = config.cluster.layout.shards;
  Printed printed;
  RETURN_IF_ERROR(bench::RunBenchOps(options, &printed.text, &printed.rows));
  return printed;
}

absl::StatusOr<Printed> BenchStep(const BenchConfig& config, const Arguments& operands) {
  bench::BenchStepOptions options = config.step;
  ASSIGN_OR_RETURN(options.cluster, ClusterOf(config, operands));
  options.batches.assign(config.batches.begin(), config.batches.end());
  options.prompts.assign(config.prompts.begin(), config.prompts.end());
  Printed printed;
  RETURN_IF_ERROR(bench::RunBenchStep(options, &printed.text, &printed.rows));
  return printed;
}

absl::StatusOr<Printed> BenchThroughput(const BenchConfig& config, const Arguments& operands) {
  bench::BenchThroughputOptions options = config.throughput;
  ASSIGN_OR_RETURN(options.cluster, ClusterOf(config, operands));
  Printed printed;
  bench::ThroughputResult result;
  RETURN_IF_ERROR(bench::RunBenchThroughput(options, &printed.text, &result));
  const auto output = static_cast<double>(result.output_tokens);
  printed.rows.columns = {{"load", 0},
                          {"seconds", 1},
                          {"output_tok_per_s", 1},
                          {"total_tok_per_s", 1},
                          {"preemptions", 0}};
  printed.rows.rows = {{fmt::format("{} x ({} + {})", options.num_prompts, options.input_tokens,
                                    options.output_tokens),
                        result.seconds, output / result.seconds,
                        (output + static_cast<double>(result.prompt_tokens)) / result.seconds,
                        static_cast<double>(result.preemptions)}};
  return printed;
}

absl::StatusOr<Printed> BenchScore(const BenchConfig& config, const Arguments& operands) {
  bench::BenchScoreOptions options;
  ASSIGN_OR_RETURN(options.cluster, ClusterOf(config, operands));
  options.input = config.input;
  options.output = config.output;
  if (options.input.empty() || options.output.empty()) {
    return InvalidArgument("bench score needs --input and --output");
  }
  Printed printed;
  RETURN_IF_ERROR(bench::RunBenchScore(options, &printed.text));
  return printed;
}

absl::StatusOr<Printed> BenchCoordinator(const BenchConfig& config, const Arguments&) {
  bench::BenchCoordinatorOptions options;
  options.num_sequences = config.num_sequences;
  Printed printed;
  RETURN_IF_ERROR(bench::RunBenchCoordinator(options, &printed.text, &printed.rows));
  return printed;
}

absl::StatusOr<Printed> BenchCeilings(const BenchConfig& config, const Arguments& operands) {
  ASSIGN_OR_RETURN(const bench::ClusterOptions cluster, ClusterOf(config, operands));
  ASSIGN_OR_RETURN(const bench::ClusterFacts facts, bench::GatherFacts(cluster));
  const Json json = Json::MakeObject({{"bytes_per_second", facts.ceilings.rates.bytes},
                                      {"operations_per_second", facts.ceilings.rates.operations},
                                      {"description", facts.ceilings.description}});
  return Printed{.text = json.Dump() + "\n", .rows = {}};
}

// What --output asks for.
int WriteRows(const BenchConfig& config, const Arguments& arguments, const Arguments& operands,
              const Printed& printed) {
  bench::Report report = bench::ReportOfTable(
      operands[0], fmt::format("polyreme bench {}", fmt::join(operands, " ")), printed.rows);
  report.notes = printed.text;
  report.conditions = ConditionsOf(arguments);
  // Printed first, by all of these that have a roofline.
  if (operands[0] != "coordinator") {
    report.conditions.roofline = printed.text.substr(0, printed.text.find("\n\n"));
    std::replace(report.conditions.roofline.begin(), report.conditions.roofline.end(), '\n', ' ');
  }
  report.settings.Set("model", operands.size() > 1 ? operands[1] : "none");
  report.settings.Set("dtype", config.dtype);
  report.settings.Set("device", config.cluster.device);
  report.settings.Set("layout", fmt::format("tp{}pp{}", config.cluster.layout.shards,
                                            config.cluster.layout.stages));
  const absl::StatusOr<std::string> written = WriteReport(report, config.output);
  if (!written.ok()) return FailBench(written.status());
  std::fputs(written->c_str(), stderr);
  return 0;
}

struct Benchmark {
  std::string_view name;
  absl::StatusOr<Printed> (*run)(const BenchConfig&, const Arguments&);
};
constexpr Benchmark kBenchmarks[] = {{"ops", BenchOps},
                                     {"step", BenchStep},
                                     {"throughput", BenchThroughput},
                                     {"score", BenchScore},
                                     {"coordinator", BenchCoordinator},
                                     {"ceilings", BenchCeilings}};

// Those with flags of their own.
struct OtherBenchmark {
  std::string_view name;
  int (*run)(const Arguments&);
};
constexpr OtherBenchmark kOtherBenchmarks[] = {{"sweep", RunBenchSweep},
                                               {"serve", RunBenchServe},
                                               {"cold", RunBenchCold},
                                               {"compare", RunBenchCompare}};

absl::StatusOr<Printed> RunNamed(BenchConfig& config, const Arguments& operands) {
  Complete(config);
  for (const Benchmark& benchmark : kBenchmarks) {
    if (operands[0] == benchmark.name) return benchmark.run(config, operands);
  }
  return InvalidArgument("no benchmark '{:.40}'; see --help", operands[0]);
}

void AddClusterFlags(FlagSet& flags, BenchConfig& config) {
  bench::ClusterOptions& cluster = config.cluster;
  flags.Section("Where");
  flags.Add({"--device"}, "NAME", "cpu or cuda (default cpu)",
            SetOneOf(&cluster.device, {"cpu", "cuda"}));
  flags.Add({"--cpu-threads"}, "N", "threads of each rank (default 1)",
            SetInt(&cluster.num_threads, 1, 1024));
  flags.Add({"--tensor-parallel-size", "-tp"}, "T", "shards; of ops: sizes of one (default 1)",
            SetInt(&cluster.layout.shards, 1, limits::kMaxRanks));
  flags.Add({"--pipeline-parallel-size", "-pp"}, "P", "stages (default 1)",
            SetInt(&cluster.layout.stages, 1, limits::kMaxStages));
  flags.Add({"--attention-backend"}, "NAME", "auto, flashinfer or own (default auto)",
            SetOneOf(&config.attention, {"auto", "flashinfer", "own"}));
  flags.Add({"--enforce-eager"}, "", "GPU: record no graphs",
            SetFlag(&cluster.backend.enforce_eager));
  flags.Add({"--cache-dir"}, "DIR", "GPU: where the table of product algorithms is kept",
            SetString(&cluster.backend.cache_directory));
  flags.Section("What");
  flags.Add({"--load-format"}, "FORMAT",
            "auto, safetensors, or dummy: random weights of config.json's sizes, no files",
            SetOneOf(&config.load_format, {"auto", "safetensors", "dummy"}));
  flags.Add({"--seed"}, "N", "of dummy weights (default 0)", SetInt(&config.seed, 0, 1 << 30));
  flags.Add({"--dtype"}, "TYPE", "GPU: auto (as stored), bfloat16, float16 or float32",
            SetOneOf(&config.dtype, {"auto", "bfloat16", "float16", "float32"}));
  flags.Add({"--max-num-batched-tokens"}, "N", "of a step (default 512, on a GPU 8192)",
            SetInt(&cluster.max_num_batched_tokens, 1, limits::kMaxStepTokens));
}

void AddSizeFlags(FlagSet& flags, BenchConfig& config) {
  flags.Add({"--batch"}, "N,N,...", "step: sequences decoded at once (default 1 to 64)",
            SetIntList(&config.batches));
  flags.Add({"--context"}, "N", "step: tokens of each sequence before decoding (default 128)",
            SetInt(&config.step.context, 1, limits::kMaxPositions));
  flags.Add({"--steps"}, "N", "step: decode steps measured (default 64)",
            SetInt(&config.step.num_steps, 2, 1 << 20));
  flags.Add({"--prompt"}, "N,N,...", "step: prompts (default 512, on a GPU 2048,8192,32768)",
            SetIntList(&config.prompts));
  flags.Add({"--num-prompts"}, "N", "throughput: requests (default 256)",
            SetInt(&config.throughput.num_prompts, 1, limits::kMaxWaitingSequences));
  flags.Add({"--input-len"}, "N", "throughput: tokens of each prompt (default 1024)",
            SetInt(&config.throughput.input_tokens, 1, limits::kMaxPositions));
  flags.Add({"--output-len"}, "N", "throughput: tokens drawn for each (default 1024)",
            SetInt(&config.throughput.output_tokens, 1, limits::kMaxPositions));
  flags.Add({"--max-num-seqs"}, "N", "throughput: running at once (default 256)",
            SetInt(&config.throughput.max_num_seqs, 1, limits::kMaxSequences));
  flags.Add({"--num-sequences"}, "N", "coordinator: sequences in decode (default 256)",
            SetInt(&config.num_sequences, 1, limits::kMaxSequences));
  flags.Add({"--input"}, "FILE", "score: lines of {\"tokens\": [...]}", SetString(&config.input));
  flags.Add({"--output"}, "PATH",
            "a folder for data and tables; of score a file for {\"logprobs\": [...], \"top\": "
            "[...]} lines",
            SetString(&config.output));
}

}  // namespace

int RunBench(const Arguments& arguments) {
  for (const OtherBenchmark& benchmark : kOtherBenchmarks) {
    if (!arguments.empty() && arguments[0] == benchmark.name) return benchmark.run(arguments);
  }
  BenchConfig config;
  FlagSet flags(kUsage);
  AddClusterFlags(flags, config);
  AddSizeFlags(flags, config);
  flags.Add({"--help", "-h"}, "", "this text", SetFlag(&config.help));
  Arguments operands;
  const absl::Status parsed = flags.Parse(arguments, operands);
  if (parsed.ok() && (config.help || operands.empty())) {
    std::fputs(flags.Help().c_str(), config.help ? stdout : stderr);
    return config.help ? 0 : 2;
  }
  if (!parsed.ok()) return FailBench(parsed);
  const bool writes = !config.output.empty() && operands[0] != "score";
  if (writes) {
    if (absl::Status s = bench::PrepareOutput(config.output); !s.ok()) return FailBench(s);
  }
  const absl::StatusOr<Printed> printed = RunNamed(config, operands);
  if (!printed.ok()) return FailBench(printed.status());
  std::fputs(printed->text.c_str(), stdout);
  return writes ? WriteRows(config, arguments, operands, *printed) : 0;
}

}  // namespace polyreme::cli
