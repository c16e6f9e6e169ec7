// `polyreme bench cold` and `bench compare`.

#include <cstdio>
#include <string>

#include "deploy/bench/cold.h"
#include "deploy/bench/compare.h"
#include "deploy/bench/interrupt.h"
#include "deploy/cli/bench_target.h"
#include "deploy/cli/device_choice.h"
#include "worker/weights/tensor_source.h"

namespace polyreme::cli {
namespace {

constexpr char kColdUsage[] =
    "usage: polyreme bench cold MODEL [flags] [-- flags of serve]\n\n"
    "Starts polyreme serve, asks for a token and ends it, several times: seconds from exec to\n"
    "ready and to the first token.";
constexpr char kCompareUsage[] =
    "usage: polyreme bench compare A B [--force]\n\n"
    "A and B: what --output wrote, a folder or its result.json. Shows each figure's minimum,\n"
    "median and maximum over the rounds, B against A, and whether that is more than noise.\n"
    "Runs of another kind, model, dtype, prompts, lengths or load are not compared unless forced.";

absl::StatusOr<bench::Report> Cold(const BenchTargetConfig& target, int32_t rounds, bool evicts) {
  if (target.is_url()) return InvalidArgument("bench cold starts the server: it needs a MODEL");
  ASSIGN_OR_RETURN(ServeConfig serve, ServeConfigOf(target));
  RETURN_IF_ERROR(SettleDevice(serve).status());
  ASSIGN_OR_RETURN(const plan::ModelSpec spec, plan::ReadModelSpec(serve.model));
  ASSIGN_OR_RETURN(const DType dtype, ResolveDtype(serve, spec));
  if (!target.output.empty()) RETURN_IF_ERROR(bench::PrepareOutput(target.output));
  std::string log_path;
  bench::ColdOptions cold;
  cold.server = ChildOptionsOf(target, log_path);
  cold.model = target.where;
  cold.api_key = serve.api_keys.empty() ? target.api_key : serve.api_keys[0];
  cold.rounds = rounds;
  cold.evict_page_cache = evicts;
  ASSIGN_OR_RETURN(bench::Report report, RunCold(cold));
  report.settings.Set("model", target.where);
  report.settings.Set("dtype", NameOf(dtype));
  report.settings.Set("device", serve.device);
  report.settings.Set(
      "layout", fmt::format("tp{}pp{}", serve.tensor_parallel_size, serve.pipeline_parallel_size));
  report.settings.Set("load", evicts ? "page cache emptied" : "page cache as it was");
  report.conditions.roofline = "none: a start has no bound of one kind";
  if (target.output.empty()) std::remove(log_path.c_str());
  return report;
}

}  // namespace

int RunBenchCold(const Arguments& arguments) {
  BenchTargetConfig target;
  int32_t rounds = 3;
  bool evicts = false;
  bool help = false;
  FlagSet flags(kColdUsage);
  flags.Section("What");
  flags.Add({"--rounds"}, "N", "(default 3)", SetInt(&rounds, 1, 1000));
  flags.Add({"--evict-page-cache"}, "", "let the kernel forget the model's files before each start",
            SetFlag(&evicts));
  flags.Add({"--output", "--result-dir"}, "DIR", "data and tables go there",
            SetString(&target.output));
  flags.Add({"--dtype"}, "TYPE", "passed on",
            SetOneOf(&target.dtype, {"auto", "bfloat16", "float16", "float32"}));
  AddServerFlags(flags, target);
  flags.Add({"--help", "-h"}, "", "this text", SetFlag(&help));
  Arguments rest(arguments.begin() + 1, arguments.end());
  TakeServeArguments(rest, target);
  Arguments operands;
  const absl::Status parsed = flags.Parse(rest, operands);
  if (parsed.ok() && help) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  if (!parsed.ok()) return FailBench(parsed);
  if (absl::Status s = CompleteTarget(operands, target); !s.ok()) return FailBench(s);
  const bench::InterruptGuard guard;
  absl::StatusOr<bench::Report> report = Cold(target, rounds, evicts);
  if (!report.ok()) return FailBench(report.status());
  return FinishReport(*std::move(report), arguments, target.output);
}

int RunBenchCompare(const Arguments& arguments) {
  bool force = false;
  bool help = false;
  FlagSet flags(kCompareUsage);
  flags.Section("How");
  flags.Add({"--force"}, "", "compare unlike runs, and say so", SetFlag(&force));
  flags.Add({"--help", "-h"}, "", "this text", SetFlag(&help));
  Arguments operands;
  const absl::Status parsed = flags.Parse({arguments.begin() + 1, arguments.end()}, operands);
  if (parsed.ok() && help) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  if (!parsed.ok()) return FailBench(parsed);
  if (operands.size() != 2) {
    return FailBench(InvalidArgument("expected two results, got {}", operands.size()));
  }
  const absl::StatusOr<Json> a = bench::ReadResult(operands[0]);
  if (!a.ok()) return FailBench(a.status());
  const absl::StatusOr<Json> b = bench::ReadResult(operands[1]);
  if (!b.ok()) return FailBench(b.status());
  const absl::StatusOr<bench::Comparison> comparison = bench::Compare(*a, *b, force);
  if (!comparison.ok()) return FailBench(comparison.status());
  std::fputs(comparison->text.c_str(), stdout);
  return 0;
}

}  // namespace polyreme::cli
