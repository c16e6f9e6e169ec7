// `polyreme bench`: each figure beside the roofline measured in the same run.

#include <cstdio>
#include <string>
#include <vector>

#include "deploy/bench/bench_coordinator.h"
#include "deploy/bench/bench_ops.h"
#include "deploy/bench/bench_step.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/flags.h"
#include "parallel/plan/model_spec.h"

namespace polyreme::cli {
namespace {

constexpr char kUsage[] =
    "usage: polyreme bench WHAT [MODEL] [flags]\n\n"
    "  ops [MODEL]    products, attention and norms of MODEL's sizes (default: the demo model's)\n"
    "  step MODEL     whole steps: decode at several batches, and a prompt; ranks are threads\n"
    "  coordinator    one step's planning, wire and commit with workers that answer at once\n\n"
    "Each figure stands beside its roofline, measured in the same run on the same threads.";

struct BenchConfig {
  int32_t threads = 1;
  int32_t tensor_parallel = 1;
  int32_t pipeline_parallel = 1;
  int32_t context = 128;
  int32_t num_sequences = 256;
  std::vector<int64_t> batches;
  bool help = false;
};

absl::StatusOr<std::string> BenchOps(const BenchConfig& config, const Arguments& operands) {
  bench::BenchOpsOptions options;
  options.model = bench::DemoModelSizes();
  if (operands.size() > 1) {
    ASSIGN_OR_RETURN(options.model, plan::ReadModelSpec(operands[1]));
  }
  options.num_threads = config.threads;
  std::string table;
  RETURN_IF_ERROR(bench::RunBenchOps(options, &table));
  return table;
}

absl::StatusOr<std::string> BenchStep(const BenchConfig& config, const Arguments& operands) {
  if (operands.size() != 2) return InvalidArgument("bench step needs a MODEL directory");
  bench::BenchStepOptions options;
  options.model = operands[1];
  options.tensor_parallel = config.tensor_parallel;
  options.pipeline_parallel = config.pipeline_parallel;
  options.num_threads = config.threads;
  options.context = config.context;
  if (!config.batches.empty()) options.batches.assign(config.batches.begin(), config.batches.end());
  for (const int32_t batch : options.batches) {
    if (batch < 1 || batch > limits::kMaxSequences) {
      return InvalidArgument("--batch: expected 1 to {}, got {}", limits::kMaxSequences, batch);
    }
  }
  std::string table;
  RETURN_IF_ERROR(bench::RunBenchStep(options, &table));
  return table;
}

absl::StatusOr<std::string> BenchCoordinator(const BenchConfig& config, const Arguments&) {
  bench::BenchCoordinatorOptions options;
  options.num_sequences = config.num_sequences;
  std::string table;
  RETURN_IF_ERROR(bench::RunBenchCoordinator(options, &table));
  return table;
}

struct Benchmark {
  std::string_view name;
  absl::StatusOr<std::string> (*run)(const BenchConfig&, const Arguments&);
};
constexpr Benchmark kBenchmarks[] = {
    {"ops", BenchOps}, {"step", BenchStep}, {"coordinator", BenchCoordinator}};

absl::StatusOr<std::string> RunNamed(const BenchConfig& config, const Arguments& operands) {
  for (const Benchmark& benchmark : kBenchmarks) {
    if (operands[0] == benchmark.name) return benchmark.run(config, operands);
  }
  return InvalidArgument("no benchmark '{:.40}'; see --help", operands[0]);
}

}  // namespace

int RunBench(const Arguments& arguments) {
  BenchConfig config;
  FlagSet flags(kUsage);
  flags.Section("Flags");
  flags.Add({"--cpu-threads"}, "N", "threads of each rank (default 1)",
            SetInt(&config.threads, 1, 1024));
  flags.Add({"--tensor-parallel-size", "-tp"}, "T", "step: shards (default 1)",
            SetInt(&config.tensor_parallel, 1, limits::kMaxRanks));
  flags.Add({"--pipeline-parallel-size", "-pp"}, "P", "step: stages (default 1)",
            SetInt(&config.pipeline_parallel, 1, limits::kMaxStages));
  flags.Add({"--batch"}, "N,N,...", "step: sequences decoded at once (default 1 to 64)",
            SetIntList(&config.batches));
  flags.Add({"--context"}, "N", "step: prompt tokens of each sequence (default 128)",
            SetInt(&config.context, 1, limits::kMaxPositions));
  flags.Add({"--num-sequences"}, "N", "coordinator: sequences in decode (default 256)",
            SetInt(&config.num_sequences, 1, limits::kMaxSequences));
  flags.Add({"--help", "-h"}, "", "this text", SetFlag(&config.help));
  Arguments operands;
  const absl::Status parsed = flags.Parse(arguments, operands);
  if (parsed.ok() && (config.help || operands.empty())) {
    std::fputs(flags.Help().c_str(), config.help ? stdout : stderr);
    return config.help ? 0 : 2;
  }
  const absl::StatusOr<std::string> table =
      parsed.ok() ? RunNamed(config, operands) : absl::StatusOr<std::string>(parsed);
  if (!table.ok()) {
    std::fprintf(stderr, "polyreme bench: %s\n", Message(table.status()).c_str());
    return absl::IsInvalidArgument(table.status()) ? 2 : 1;
  }
  std::fputs(table->c_str(), stdout);
  return 0;
}

}  // namespace polyreme::cli
