// `polyreme bench`: each figure beside the roofline measured in the same run.

#include <cstdio>
#include <string>
#include <thread>

#include "deploy/bench/bench_ops.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/flags.h"
#include "parallel/plan/model_spec.h"

namespace polyreme::cli {
namespace {

constexpr char kUsage[] =
    "usage: polyreme bench WHAT [MODEL] [flags]\n\n"
    "  ops           products, attention and norms of MODEL's sizes (default: the demo model's)";

struct BenchConfig {
  int32_t threads = 1;
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

}  // namespace

int RunBench(const Arguments& arguments) {
  BenchConfig config;
  FlagSet flags(kUsage);
  flags.Section("Flags");
  flags.Add({"--cpu-threads"}, "N", "threads (default 1)", SetInt(&config.threads, 1, 1024));
  flags.Add({"--help", "-h"}, "", "this text", SetFlag(&config.help));
  Arguments operands;
  absl::Status status = flags.Parse(arguments, operands);
  if (config.help || operands.empty()) {
    std::fputs(flags.Help().c_str(), config.help ? stdout : stderr);
    return config.help ? 0 : 2;
  }
  absl::StatusOr<std::string> table = InvalidArgument("no benchmark '{:.40}'; see --help", operands[0]);
  if (!status.ok()) {
    table = status;
  } else if (operands[0] == "ops") {
    table = BenchOps(config, operands);
  }
  if (!table.ok()) {
    std::fprintf(stderr, "polyreme bench: %s\n", Message(table.status()).c_str());
    return absl::IsInvalidArgument(table.status()) ? 2 : 1;
  }
  std::fputs(table->c_str(), stdout);
  return 0;
}

}  // namespace polyreme::cli
