// `polyreme bench sweep` and `bench serve`: a server under load, seen from outside.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "deploy/bench/dataset.h"
#include "deploy/bench/interrupt.h"
#include "deploy/bench/serve_bench.h"
#include "deploy/bench/sweep.h"
#include "deploy/cli/bench_target.h"
#include "parallel/base/file.h"
#include "parallel/plan/model_spec.h"

namespace polyreme::cli {
namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();
constexpr int64_t kMaxDatasetBytes = int64_t{1} << 30;
constexpr int64_t kMaxPrompts = 1000000;

constexpr char kSweepUsage[] =
    "usage: polyreme bench sweep URL|MODEL [flags] [-- flags of serve]\n\n"
    "250 prompts of five kinds (function completion, repair, algorithms, API use, explanation) at\n"
    "concurrencies 1 to 64, in three rounds: throughput, latencies and failures of each.\n"
    "URL: any OpenAI-compatible server. MODEL: a folder; polyreme serve is started for it.\n\n"
    "  polyreme bench sweep deploy/demo-model -tp 2 --output sweep\n"
    "  polyreme bench sweep http://127.0.0.1:8000 --rounds 1 --num-prompts 50";
constexpr char kServeUsage[] =
    "usage: polyreme bench serve URL|MODEL [flags] [-- flags of serve]\n\n"
    "Requests that arrive by a rate, by a trace, or as a bound on concurrency lets them. With a\n"
    "rate or a trace all delays count from the time at which a request was to be sent.\n\n"
    "  polyreme bench serve http://127.0.0.1:8000 --request-rate 4 --num-prompts 200 \\\n"
    "      --random-input-len 1024 --random-output-len 256 --slo ttft:450ms,tpot:40ms";

struct SweepConfig {
  BenchTargetConfig target;
  std::vector<int64_t> concurrency = {1, 4, 8, 16, 32, 64};
  std::string dataset;
  int32_t rounds = 3;
  int32_t max_tokens = 512;
  std::vector<int64_t> num_prompts = {250};
  bool help = false;
};

struct ServeBenchConfig {
  BenchTargetConfig target;
  std::string dataset_name = "random";
  std::string dataset_path;
  std::string tokenizer;
  bench::RandomOptions random;
  double request_rate = kInfinite;
  double burstiness = 1;
  double trace_speed = 1;
  int32_t max_concurrency = 0;
  int32_t num_prompts = 1000;
  int32_t max_tokens = 512;
  int32_t rounds = 1;
  int32_t seed = 0;
  int32_t vocabulary = 0;
  std::string percentile_metrics = "ttft,tpot,itl";
  std::string percentiles = "99";
  bool help = false;
};

std::vector<std::string> SplitList(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// Two data sets of one name may hold different prompts: FNV-1a over all of them.
std::string DigestOf(const std::vector<bench::PromptEntry>& prompts) {
  uint64_t hash = 0xcbf29ce484222325;
  const auto add = [&hash](std::string_view bytes) {
    for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  };
  for (const bench::PromptEntry& entry : prompts) {
    if (const auto* text = std::get_if<std::string>(&entry.prompt); text != nullptr) add(*text);
    add(fmt::format("|{},{},{}|", entry.prompt_tokens, entry.max_tokens, entry.seconds));
  }
  return fmt::format("{:016x}", hash);
}

// A server that ends by itself is told of, whatever else happened.
int End(bench::Report report, BenchTarget& target, const BenchTargetConfig& config,
        const Arguments& arguments) {
  report.conditions.roofline = target.roofline_text;
  for (const auto& [name, value] : target.settings.members()) report.settings.Set(name, value);
  double completed = 0;
  for (const bench::ReportPoint& point : report.points) {
    for (const bench::Metrics& round : point.rounds) {
      for (const auto& [name, value] : round) completed += name == "completed" ? value : 0;
    }
  }
  // Of a server that was started here its end says more.
  absl::Status left = LeaveTarget(target, config);
  if (left.ok()) left = report.failure;
  const int code = FinishReport(std::move(report), arguments, config.output);
  if (!left.ok()) return FailBench(left);
  return code == 0 && completed == 0 ? 1 : code;
}

absl::StatusOr<std::vector<bench::PromptEntry>> PromptsOf(const std::string& path,
                                                          int32_t max_tokens, int32_t num_prompts) {
  std::string text;
  if (!path.empty()) {
    ASSIGN_OR_RETURN(text, ReadFile(path, kMaxDatasetBytes));
  }
  absl::StatusOr<std::vector<bench::PromptEntry>> prompts =
      bench::ReadPrompts(path.empty() ? bench::BuiltInPrompts() : text, max_tokens);
  if (!prompts.ok()) return Annotate(prompts.status(), path);
  if (static_cast<size_t>(num_prompts) < prompts->size()) {
    prompts->resize(static_cast<size_t>(num_prompts));
  }
  return prompts;
}

// One number for all concurrencies, or one for each: a batch of one needs fewer to say as much.
absl::Status SetNumPrompts(const SweepConfig& config, bench::SweepOptions& sweep) {
  const std::vector<int64_t>& wanted = config.num_prompts;
  if (wanted.size() != 1 && wanted.size() != sweep.concurrency.size()) {
    return InvalidArgument(
        "--num-prompts: expected one number, or one for each of {} of "
        "--concurrency, got {}",
        sweep.concurrency.size(), wanted.size());
  }
  for (const int64_t count : wanted) {
    if (count < 1 || count > kMaxPrompts) {
      return InvalidArgument("--num-prompts: expected 1 to {}, got {}", kMaxPrompts, count);
    }
  }
  const int64_t most = *std::max_element(wanted.begin(), wanted.end());
  ASSIGN_OR_RETURN(sweep.prompts,
                   PromptsOf(config.dataset, config.max_tokens, static_cast<int32_t>(most)));
  if (wanted.size() > 1) sweep.num_prompts.assign(wanted.begin(), wanted.end());
  return absl::OkStatus();
}

absl::StatusOr<int> Sweep(SweepConfig& config, const Arguments& arguments) {
  bench::SweepOptions sweep;
  sweep.concurrency.assign(config.concurrency.begin(), config.concurrency.end());
  for (const int32_t concurrency : sweep.concurrency) {
    if (concurrency < 1 || concurrency > 8192) {
      return InvalidArgument("--concurrency: expected 1 to 8192, got {}", concurrency);
    }
  }
  sweep.rounds = config.rounds;
  RETURN_IF_ERROR(SetNumPrompts(config, sweep));
  ASSIGN_OR_RETURN(BenchTarget target, ReachTarget(config.target));
  sweep.load = target.load;
  sweep.roofline = target.roofline;
  ASSIGN_OR_RETURN(bench::Report report, RunSweep(sweep));
  std::string num_prompts = fmt::format("{}", sweep.prompts.size());
  if (!sweep.num_prompts.empty())
    num_prompts = fmt::format("{}", fmt::join(sweep.num_prompts, ","));
  report.settings.Set("prompts", fmt::format("{} {}", num_prompts, DigestOf(sweep.prompts)));
  report.settings.Set(
      "lengths",
      fmt::format("max_tokens {}, eos {}, temperature {}", config.max_tokens,
                  config.target.ignore_eos ? "ignored" : "ends", config.target.temperature));
  report.settings.Set("load", "closed loop");
  report.settings.Set("backend", config.target.backend);
  return End(std::move(report), target, config.target, arguments);
}

// The tokens to draw from, where prompts are random ones.
absl::StatusOr<int32_t> VocabularyOf(const ServeBenchConfig& config, const BenchTarget& target) {
  if (config.vocabulary > 0) return config.vocabulary;
  if (target.vocabulary > 0) return target.vocabulary;
  if (config.tokenizer.empty()) {
    return InvalidArgument(
        "random prompts for a URL need --vocab-size N, or --tokenizer DIR with "
        "the model's config.json");
  }
  ASSIGN_OR_RETURN(const plan::ModelSpec spec, plan::ReadModelSpec(config.tokenizer));
  return static_cast<int32_t>(spec.vocabulary);
}

absl::Status ReadDataset(ServeBenchConfig& config, const BenchTarget& target,
                         bench::ServeBenchOptions& serve, Json& settings) {
  if (config.dataset_name == "prompts") {
    ASSIGN_OR_RETURN(serve.prompts,
                     PromptsOf(config.dataset_path, config.max_tokens, config.num_prompts));
    settings.Set("prompts", fmt::format("{} {}", serve.prompts.size(), DigestOf(serve.prompts)));
    settings.Set("lengths", fmt::format("max_tokens {}", config.max_tokens));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const int32_t vocabulary, VocabularyOf(config, target));
  if (config.dataset_name == "trace") {
    if (config.dataset_path.empty()) return InvalidArgument("a trace needs --dataset-path FILE");
    ASSIGN_OR_RETURN(const std::string text, ReadFile(config.dataset_path, kMaxDatasetBytes));
    absl::StatusOr<std::vector<bench::PromptEntry>> trace =
        bench::ReadTrace(text, config.trace_speed, vocabulary, static_cast<uint64_t>(config.seed));
    if (!trace.ok()) return Annotate(trace.status(), config.dataset_path);
    serve.prompts = *std::move(trace);
    if (static_cast<size_t>(config.num_prompts) < serve.prompts.size()) {
      serve.prompts.resize(static_cast<size_t>(config.num_prompts));
    }
    serve.is_trace = true;
    settings.Set("prompts", fmt::format("trace {}", DigestOf(serve.prompts)));
    settings.Set("lengths", "the trace's");
    return absl::OkStatus();
  }
  config.random.num_prompts = config.num_prompts;
  config.random.vocabulary = vocabulary;
  config.random.seed = static_cast<uint64_t>(config.seed);
  ASSIGN_OR_RETURN(serve.prompts, DrawRandom(config.random));
  settings.Set("prompts", fmt::format("random {}", config.num_prompts));
  settings.Set("lengths", fmt::format("prefix {}, input {}, output {}, range {}",
                                      config.random.prefix_len, config.random.input_len,
                                      config.random.output_len, config.random.range_ratio));
  return absl::OkStatus();
}

absl::Status SetPercentiles(const ServeBenchConfig& config, bench::ServeBenchOptions& serve) {
  serve.percentile_metrics.clear();
  for (const std::string& metric : SplitList(config.percentile_metrics)) {
    if (metric != "ttft" && metric != "tpot" && metric != "itl" && metric != "e2el") {
      return InvalidArgument("--percentile-metrics: expected ttft, tpot, itl, e2el, got '{:.40}'",
                             metric);
    }
    serve.percentile_metrics.push_back(metric);
  }
  serve.percentiles.clear();
  for (const std::string& text : SplitList(config.percentiles)) {
    double percentile = 0;
    RETURN_IF_ERROR(Annotate(SetNumber(&percentile, 0, 100)(text), "--metric-percentiles"));
    serve.percentiles.push_back(percentile);
  }
  return absl::OkStatus();
}

absl::StatusOr<int> ServeBench(ServeBenchConfig& config, const Arguments& arguments) {
  bench::ServeBenchOptions serve;
  RETURN_IF_ERROR(SetPercentiles(config, serve));
  if (!(config.burstiness > 0)) return InvalidArgument("--burstiness: expected more than 0");
  if (!(config.request_rate > 0)) return InvalidArgument("--request-rate: expected more than 0");
  serve.request_rate = config.request_rate;
  serve.burstiness = config.burstiness;
  serve.max_concurrency = config.max_concurrency;
  serve.seed = static_cast<uint64_t>(config.seed);
  serve.rounds = config.rounds;
  ASSIGN_OR_RETURN(BenchTarget target, ReachTarget(config.target));
  Json settings = Json::MakeObject();
  RETURN_IF_ERROR(ReadDataset(config, target, serve, settings));
  serve.load = target.load;
  ASSIGN_OR_RETURN(bench::Report report, RunServeBench(serve));
  report.settings = std::move(settings);
  report.settings.Set("load", report.points[0].name);
  report.settings.Set("eos", config.target.ignore_eos ? "ignored" : "ends");
  report.settings.Set("seed", config.seed);
  report.settings.Set("backend", config.target.backend);
  return End(std::move(report), target, config.target, arguments);
}

void AddSweepFlags(FlagSet& flags, SweepConfig& config) {
  flags.Section("What");
  flags.Add({"--concurrency"}, "N,N,...", "requests under way (default 1,4,8,16,32,64)",
            SetIntList(&config.concurrency));
  flags.Add({"--rounds"}, "N", "of all of them (default 3)", SetInt(&config.rounds, 1, 1000));
  flags.Add({"--max-tokens"}, "N", "of each answer (default 512)",
            SetInt(&config.max_tokens, 1, limits::kMaxPositions));
  flags.Add(
      {"--num-prompts"}, "N[,N...]",
      "the first N of the prompts, all kinds evenly (default 250); one N for each concurrency",
      SetIntList(&config.num_prompts));
  flags.Add({"--dataset-path"}, "FILE", "other prompts: lines of {\"prompt\": ...}",
            SetString(&config.dataset));
}

void AddServeBenchFlags(FlagSet& flags, ServeBenchConfig& c) {
  flags.Section("What");
  flags.Add({"--request-rate"}, "R", "per second (default inf: all at once)",
            SetNumber(&c.request_rate, 0, kInfinite));
  flags.Add({"--burstiness"}, "B", "1: Poisson (default); less: in bursts; inf: constant gaps",
            SetNumber(&c.burstiness, 0, kInfinite));
  flags.Add({"--max-concurrency"}, "N", "under way at most; without a rate a closed loop",
            SetInt(&c.max_concurrency, 1, 8192));
  flags.Add({"--num-prompts"}, "N", "(default 1000)", SetInt(&c.num_prompts, 1, 1000000));
  flags.Add({"--rounds"}, "N", "(default 1)", SetInt(&c.rounds, 1, 1000));
  flags.Add({"--seed"}, "N", "of arrivals, lengths and tokens (default 0)",
            SetInt(&c.seed, 0, 1 << 30));
  flags.Add({"--dataset-name"}, "NAME", "random (default), trace, or prompts",
            SetOneOf(&c.dataset_name, {"random", "trace", "prompts"}));
  flags.Add({"--dataset-path"}, "FILE",
            "trace: lines of {\"timestamp\": ms, \"input_length\": N, \"output_length\": N}; "
            "prompts: lines of {\"prompt\": ...} (default: the 250 built-in ones)",
            SetString(&c.dataset_path));
  flags.Add({"--trace-speed"}, "X", "times as fast as it was recorded (default 1)",
            SetNumber(&c.trace_speed, 1e-6, 1e6));
  flags.Add({"--random-input-len", "--input-len"}, "N", "(default 1024)",
            SetInt(&c.random.input_len, 1, limits::kMaxPositions));
  flags.Add({"--random-output-len", "--output-len"}, "N", "(default 128)",
            SetInt(&c.random.output_len, 1, limits::kMaxPositions));
  flags.Add({"--random-range-ratio"}, "R", "lengths from (1 - R) n to (1 + R) n (default 0)",
            SetNumber(&c.random.range_ratio, 0, 0.999999));
  flags.Add({"--random-prefix-len"}, "N", "tokens that all prompts begin with (default 0)",
            SetInt(&c.random.prefix_len, 0, limits::kMaxPositions));
  flags.Add({"--vocab-size"}, "N", "of random tokens (default: MODEL's)",
            SetInt(&c.vocabulary, 2, limits::kMaxVocabulary));
  flags.Add({"--tokenizer"}, "DIR", "whose config.json has the vocabulary's size",
            SetString(&c.tokenizer));
  flags.Add({"--max-tokens"}, "N", "of dataset prompts (default 512)",
            SetInt(&c.max_tokens, 1, limits::kMaxPositions));
  flags.Add({"--percentile-metrics"}, "LIST", "of ttft, tpot, itl, e2el (default the first three)",
            SetString(&c.percentile_metrics));
  flags.Add({"--metric-percentiles"}, "LIST", "(default 99)", SetString(&c.percentiles));
}

// Parses and runs one of the two.
template <class Config>
int RunWith(const char* usage, void (*add_flags)(FlagSet&, Config&),
            absl::StatusOr<int> (*run)(Config&, const Arguments&), Arguments arguments) {
  Config config;
  FlagSet flags(usage);
  AddTargetFlags(flags, config.target);
  add_flags(flags, config);
  AddServerFlags(flags, config.target);
  flags.Add({"--help", "-h"}, "", "this text", SetFlag(&config.help));
  const Arguments typed = arguments;
  arguments.erase(arguments.begin());
  TakeServeArguments(arguments, config.target);
  Arguments operands;
  const absl::Status parsed = flags.Parse(arguments, operands);
  if (parsed.ok() && config.help) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  if (!parsed.ok()) return FailBench(parsed);
  if (absl::Status s = CompleteTarget(operands, config.target); !s.ok()) return FailBench(s);
  const bench::InterruptGuard guard;
  const absl::StatusOr<int> code = run(config, typed);
  return code.ok() ? *code : FailBench(code.status());
}

}  // namespace

int RunBenchSweep(const Arguments& arguments) {
  return RunWith<SweepConfig>(kSweepUsage, AddSweepFlags, Sweep, arguments);
}

int RunBenchServe(const Arguments& arguments) {
  return RunWith<ServeBenchConfig>(kServeUsage, AddServeBenchFlags, ServeBench, arguments);
}

}  // namespace polyreme::cli
