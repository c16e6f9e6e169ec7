#include "deploy/cli/bench_target.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <thread>

#include "deploy/bench/bench_cluster.h"
#include "deploy/bench/http_client.h"
#include "deploy/bench/interrupt.h"
#include "deploy/bench/subprocess.h"
#include "deploy/cli/build_info.h"
#include "deploy/cli/device_choice.h"
#include "worker/backend/cuda/plugin.h"

namespace polyreme::cli {
namespace {

constexpr absl::Duration kAskPatience = absl::Seconds(10);
constexpr absl::Duration kMeasurePatience = absl::Minutes(3);

bench::ClusterOptions ClusterOf(const ServeConfig& serve) {
  bench::ClusterOptions cluster;
  cluster.model = serve.model;
  cluster.device = serve.device;
  cluster.layout = {serve.tensor_parallel_size, serve.pipeline_parallel_size};
  const auto cores = static_cast<int32_t>(std::thread::hardware_concurrency());
  cluster.num_threads =
      serve.cpu_threads > 0 ? serve.cpu_threads : std::max(1, cores / cluster.layout.ranks());
  return cluster;
}

// Measures in another process, so that this one holds no part of a GPU while the server starts.
absl::StatusOr<bench::Ceilings> MeasureCeilings(const bench::ClusterOptions& cluster) {
  ASSIGN_OR_RETURN(const std::string line,
                   bench::OutputOf("/proc/self/exe",
                                   {"bench", "ceilings", cluster.model, "--device", cluster.device,
                                    "-tp", std::to_string(cluster.layout.shards), "-pp",
                                    std::to_string(cluster.layout.stages), "--cpu-threads",
                                    std::to_string(cluster.num_threads)},
                                   kMeasurePatience, /*shows_errors=*/true));
  ASSIGN_OR_RETURN(const Json json, Json::Parse(line));
  const Json* bytes = json.Find("bytes_per_second");
  const Json* operations = json.Find("operations_per_second");
  const Json* description = json.Find("description");
  if (bytes == nullptr || operations == nullptr || description == nullptr) {
    return DataLoss("expected rates, got {}", line);
  }
  bench::Ceilings ceilings;
  ceilings.rates = {bytes->as_double(), operations->as_double()};
  ceilings.description = description->as_string();
  return ceilings;
}

absl::Status AddRoofline(const ServeConfig& serve, BenchTarget& target) {
  bench::ClusterOptions cluster = ClusterOf(serve);
  ASSIGN_OR_RETURN(const plan::ModelSpec spec, plan::ReadModelSpec(serve.model));
  ASSIGN_OR_RETURN(cluster.backend.dtype, ResolveDtype(serve, spec));
  ASSIGN_OR_RETURN(bench::Ceilings ceilings, MeasureCeilings(cluster));
  ASSIGN_OR_RETURN(const bench::ClusterFacts facts, FactsWith(cluster, std::move(ceilings)));
  const bench::Layout layout = cluster.layout;
  const bench::Rates rates = facts.ceilings.rates;
  const bench::Roofline roofline = facts.roofline;
  target.roofline.tokens_per_second = [=](int64_t batch, double context) {
    return static_cast<double>(batch) / roofline.DecodeSeconds(rates, layout, batch, context);
  };
  target.roofline.operations = [=](int64_t batch, double context) {
    return roofline.DecodeCost(batch, layout.stages, context).operations;
  };
  target.roofline.bytes = [=](int64_t batch, double context) {
    return roofline.DecodeCost(batch, layout.stages, context).bytes;
  };
  target.roofline.bytes_per_second = rates.bytes * layout.ranks();
  target.roofline.operations_per_second = rates.operations * layout.ranks();
  target.roofline_text = facts.ceilings.description;
  std::replace(target.roofline_text.begin(), target.roofline_text.end(), '\n', ' ');
  while (target.roofline_text.ends_with(' ')) target.roofline_text.pop_back();
  return absl::OkStatus();
}

// Bytes in use on the devices of a server that this process started.
std::function<double()> MemoryOf(const ServeConfig& serve, const bench::ChildServer& server) {
  if (serve.device != "cuda") {
    return [&server] { return static_cast<double>(server.PeakResidentBytes()); };
  }
  const int64_t ranks = int64_t{serve.tensor_parallel_size} * serve.pipeline_parallel_size;
  return [ranks]() -> double {
    const auto plugin = cuda::OpenCudaPlugin();
    if (!plugin.ok()) return std::numeric_limits<double>::quiet_NaN();
    const auto system = (*plugin)->describe();
    if (!system.ok()) return std::numeric_limits<double>::quiet_NaN();
    double bytes = 0;
    for (size_t i = 0; i < system->gpus.size() && static_cast<int64_t>(i) < ranks; ++i) {
      bytes += static_cast<double>(system->gpus[i].total_bytes - system->gpus[i].free_bytes);
    }
    return bytes;
  };
}

absl::Status ServeModel(const BenchTargetConfig& config, BenchTarget& target) {
  ASSIGN_OR_RETURN(ServeConfig serve, ServeConfigOf(config));
  RETURN_IF_ERROR(SettleDevice(serve).status());
  ASSIGN_OR_RETURN(const plan::ModelSpec spec, plan::ReadModelSpec(serve.model));
  ASSIGN_OR_RETURN(const DType dtype, ResolveDtype(serve, spec));
  target.vocabulary = static_cast<int32_t>(spec.vocabulary);
  target.settings.Set("dtype", NameOf(dtype));
  target.settings.Set("device", serve.device);
  target.settings.Set(
      "layout", fmt::format("tp{}pp{}", serve.tensor_parallel_size, serve.pipeline_parallel_size));
  target.settings.Set("server", fmt::format("polyreme {}", kVersion));
  if (!config.no_roofline) {
    std::fputs("measuring the roofline\n", stderr);
    if (absl::Status measured = AddRoofline(serve, target); !measured.ok()) {
      return Annotate(measured, "roofline (--no-roofline leaves it out)");
    }
  }
  const bench::ChildServerOptions child = ChildOptionsOf(config, target.server_log);
  std::fprintf(stderr, "starting polyreme serve %s\n", serve.model.c_str());
  ASSIGN_OR_RETURN(target.server, bench::ChildServer::Start(child));
  ASSIGN_OR_RETURN(target.load.target.url, bench::ParseHttpUrl(target.server->url()));
  target.load.memory = MemoryOf(serve, *target.server);
  if (target.load.target.api_key.empty() && !serve.api_keys.empty()) {
    target.load.target.api_key = serve.api_keys[0];
  }
  return absl::OkStatus();
}

}  // namespace

bool BenchTargetConfig::is_url() const {
  return where.find("://") != std::string::npos;
}

void AddTargetFlags(FlagSet& flags, BenchTargetConfig& c) {
  flags.Section("Whom to ask");
  flags.Add({"--base-url"}, "URL", "instead of the operand", SetString(&c.base_url));
  flags.Add({"--host"}, "ADDRESS", "with --port, instead of a URL", SetString(&c.host));
  flags.Add({"--port"}, "PORT", "", SetInt(&c.port, 1, 65535));
  flags.Add({"--backend"}, "NAME", "openai: /v1/completions (default); openai-chat: chats",
            SetOneOf(&c.backend, {"openai", "openai-chat", "vllm"}));
  flags.Add({"--endpoint"}, "PATH", "another path than the backend's", SetString(&c.endpoint));
  flags.Add({"--model", "--served-model-name"}, "NAME", "as served (default: the first one)",
            SetString(&c.model));
  flags.Add({"--api-key"}, "KEY", "(default: $OPENAI_API_KEY)", SetString(&c.api_key));
  flags.Add({"--dtype"}, "TYPE", "of MODEL, passed on; of a URL only noted",
            SetOneOf(&c.dtype, {"auto", "bfloat16", "float16", "float32"}));
  flags.Add({"--temperature"}, "T", "(default 0)", SetNumber(&c.temperature, 0, 100));
  flags.Add({"--ignore-eos"}, "", "draw all tokens (vLLM's and our own servers)",
            SetFlag(&c.ignore_eos));
  flags.Add({"--no-usage"}, "", "do not ask for the server's own count of tokens",
            SetFlag(&c.no_usage));
  flags.Add({"--extra-body"}, "JSON", "members added to every request", SetString(&c.extra_body));
  flags.Section("How");
  flags.Add({"--output", "--result-dir"}, "DIR", "raw data, tables and plots go there",
            SetString(&c.output));
  flags.Add({"--slo", "--goodput"}, "LIMITS",
            "count what keeps them: ttft:450ms,tpot:40ms,e2el:5s (without a unit: ms)",
            SetString(&c.slo));
  flags.Add({"--client-threads"}, "N", "of this client (default 1)",
            SetInt(&c.client_threads, 1, 64));
  flags.Add({"--num-warmups"}, "N", "requests before, not measured (default 1)",
            SetInt(&c.num_warmups, 1, 10000));
  flags.Add({"--request-timeout"}, "SECONDS", "without a byte of an answer (default 600)",
            SetSeconds(&c.request_timeout));
  flags.Ignore({"--save-result"}, "");
  flags.Ignore({"--disable-tqdm"}, "");
  flags.Ignore({"--trust-remote-code"}, "");
}

void AddServerFlags(FlagSet& flags, BenchTargetConfig& c) {
  flags.Section("Of a MODEL (more flags of `serve` behind --)");
  flags.Add({"--tensor-parallel-size", "-tp"}, "T", "shards (default 1)",
            SetInt(&c.shards, 1, limits::kMaxRanks));
  flags.Add({"--pipeline-parallel-size", "-pp"}, "P", "stages (default 1)",
            SetInt(&c.stages, 1, limits::kMaxStages));
  flags.Add({"--device"}, "DEVICE", "auto, cpu or cuda (default auto)",
            SetOneOf(&c.device, {"auto", "cpu", "cuda"}));
  flags.Add({"--load-format"}, "FORMAT", "auto, safetensors or dummy",
            SetOneOf(&c.load_format, {"auto", "safetensors", "dummy"}));
  flags.Add({"--ready-timeout", "--ready-check-timeout-sec"}, "SECONDS",
            "how long it may take to start (default 1800)", SetSeconds(&c.ready_timeout));
  flags.Add({"--no-roofline"}, "", "do not measure what the machine could do at best",
            SetFlag(&c.no_roofline));
}

void TakeServeArguments(Arguments& arguments, BenchTargetConfig& config) {
  const auto dashes = std::find(arguments.begin(), arguments.end(), "--");
  if (dashes == arguments.end()) return;
  config.serve_arguments.assign(dashes + 1, arguments.end());
  arguments.erase(dashes, arguments.end());
}

absl::Status CompleteTarget(const Arguments& operands, BenchTargetConfig& config) {
  Arguments places;
  for (const std::string& operand : operands) {
    // vLLM's --goodput takes several words.
    const bool is_limit =
        !config.slo.empty() && (operand.starts_with("ttft:") || operand.starts_with("tpot:") ||
                                operand.starts_with("e2el:"));
    if (is_limit) {
      config.slo += "," + operand;
    } else {
      places.push_back(operand);
    }
  }
  if (!config.base_url.empty()) places.push_back(config.base_url);
  if (config.port > 0) places.push_back(fmt::format("http://{}:{}", config.host, config.port));
  if (places.size() != 1) {
    return InvalidArgument("expected one URL or MODEL, got {}", places.size());
  }
  config.where = places[0];
  if (!config.is_url() && !std::filesystem::is_directory(config.where)) {
    return InvalidArgument(
        "'{}' is neither a model's folder nor a URL such as "
        "http://127.0.0.1:8000",
        config.where);
  }
  const bool serves = !config.serve_arguments.empty() || config.shards > 0 || config.stages > 0 ||
                      !config.device.empty() || !config.load_format.empty();
  if (config.is_url() && serves) {
    return InvalidArgument(
        "-tp, -pp, --device, --load-format and what is behind -- are for a "
        "MODEL that is started here, not for {}",
        config.where);
  }
  if (const char* key = std::getenv(kOpenAiKeyVariable); config.api_key.empty() && key != nullptr) {
    config.api_key = key;
  }
  if (config.api_key.find_first_of("\r\n") != std::string::npos) {
    return InvalidArgument("the API key has a line end");
  }
  return absl::OkStatus();
}

absl::StatusOr<ServeConfig> ServeConfigOf(const BenchTargetConfig& config) {
  std::string log_path;
  ServeConfig serve;
  FlagSet flags = ServeFlags("", serve);
  RETURN_IF_ERROR(Annotate(
      ParseServeArguments(ChildOptionsOf(config, log_path).arguments, flags, serve), "serve"));
  return serve;
}

bench::ChildServerOptions ChildOptionsOf(const BenchTargetConfig& config, std::string& log_path) {
  bench::ChildServerOptions child;
  child.arguments = {config.where};
  const auto add = [&child](const char* flag, const std::string& value) {
    child.arguments.insert(child.arguments.end(), {flag, value});
  };
  if (config.shards > 0) add("-tp", std::to_string(config.shards));
  if (config.stages > 0) add("-pp", std::to_string(config.stages));
  if (!config.device.empty()) add("--device", config.device);
  if (!config.load_format.empty()) add("--load-format", config.load_format);
  if (config.dtype != "auto") add("--dtype", config.dtype);
  child.arguments.insert(child.arguments.end(), config.serve_arguments.begin(),
                         config.serve_arguments.end());
  child.ready_patience = config.ready_timeout;
  log_path = config.output.empty()
                 ? fmt::format("{}/polyreme-bench-{}.log",
                               std::filesystem::temp_directory_path().string(), getpid())
                 : config.output + "/server.log";
  child.log_path = log_path;
  return child;
}

absl::StatusOr<BenchTarget> ReachTarget(const BenchTargetConfig& config) {
  BenchTarget target;
  bench::LoadBenchOptions& load = target.load;
  load.num_threads = config.client_threads;
  load.num_warmups = config.num_warmups;
  load.silence_deadline = config.request_timeout;
  if (!config.slo.empty()) {
    absl::StatusOr<bench::Slo> slo = bench::ParseSlo(config.slo);
    if (!slo.ok()) return Annotate(slo.status(), "--slo");
    load.slo = *slo;
  }
  load.target.api_key = config.api_key;
  load.target.chat = config.backend == "openai-chat";
  load.target.endpoint = config.endpoint;
  load.target.ignore_eos = config.ignore_eos;
  load.target.include_usage = !config.no_usage;
  load.target.temperature = config.temperature;
  if (!config.extra_body.empty()) {
    absl::StatusOr<Json> extra = Json::Parse(config.extra_body);
    if (!extra.ok()) return Annotate(extra.status(), "--extra-body");
    if (!extra->is_object()) return InvalidArgument("--extra-body: expected an object");
    load.target.extra = *std::move(extra);
  }
  if (!config.output.empty()) RETURN_IF_ERROR(bench::PrepareOutput(config.output));
  target.roofline_text = "not measured: ";
  if (config.is_url()) {
    ASSIGN_OR_RETURN(load.target.url, bench::ParseHttpUrl(config.where));
    target.settings.Set("dtype", config.dtype == "auto" ? Json() : Json(config.dtype));
    target.settings.Set("server", load.target.url.authority());
    target.roofline_text += "the server is another's, maybe on another machine";
  } else {
    if (config.no_roofline) target.roofline_text += "--no-roofline";
    RETURN_IF_ERROR(ServeModel(config, target));
  }
  ASSIGN_OR_RETURN(const bench::ServedModel served,
                   bench::AskServer(load.target, config.model, kAskPatience));
  load.target.model = served.id;
  load.max_model_len = served.max_model_len;
  target.settings.Set("model", served.id);
  return target;
}

absl::Status LeaveTarget(BenchTarget& target, const BenchTargetConfig& config) {
  if (target.server == nullptr) return absl::OkStatus();
  const absl::Status ended = target.server->Stop();
  if (config.output.empty() && ended.ok()) unlink(target.server_log.c_str());
  return ended.ok() ? ended : Annotate(ended, fmt::format("see {}", target.server_log));
}

std::string CommandLineOf(const Arguments& arguments) {
  std::string line = "polyreme bench";
  bool is_key = false;
  for (const std::string& argument : arguments) {
    const std::string name = argument.substr(0, argument.find('='));
    const bool names_key = name == "--api-key" || name == "--api_key";
    line += " " + (is_key ? "***" : names_key ? name : argument);
    is_key = names_key && name == argument;
  }
  return line;
}

bench::Conditions ConditionsOf(const Arguments& arguments) {
  return bench::GatherConditions(CommandLineOf(arguments),
                                 fmt::format("polyreme {} (build {})", kVersion, BuildId()));
}

int FinishReport(bench::Report report, const Arguments& arguments, const std::string& output) {
  const std::string roofline = report.conditions.roofline;
  report.conditions = ConditionsOf(arguments);
  report.conditions.roofline = roofline;
  std::fputs(report.Text().c_str(), stdout);
  if (!output.empty()) {
    const absl::StatusOr<std::string> written = WriteReport(report, output);
    if (!written.ok()) return FailBench(written.status());
    std::fputs(written->c_str(), stderr);
  }
  return report.interrupted ? bench::kInterruptedExit : 0;
}

int FailBench(const absl::Status& status) {
  std::fprintf(stderr, "polyreme bench: %s\n", Message(status).c_str());
  if (bench::Interrupted()) return bench::kInterruptedExit;
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

}  // namespace polyreme::cli
