// `polyreme plan`: what a model takes and how fast it can be, before anything is bought or loaded.

#include <cstdio>
#include <string>

#include "absl/strings/numbers.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/device_choice.h"
#include "deploy/cli/flags.h"
#include "deploy/cli/serve_config.h"
#include "deploy/sizing/claims.h"
#include "deploy/sizing/presets.h"
#include "deploy/sizing/report.h"
#include "deploy/sizing/sweep.h"
#include "parallel/base/file.h"

namespace polyreme::cli {
namespace {

constexpr char kUsage[] =
    "usage: polyreme plan MODEL --gpu NAME[:N] [-tp T] [-pp P] [flags]\n"
    "       polyreme plan --gpu list\n"
    "       polyreme plan MODEL --recommend --role ide|api|farm|scan --budget X\n\n"
    "What a launch would take of each GPU, by the code that workers allocate by, and how fast it "
    "can\n"
    "be at most. Needs no weights, no GPU and no network. MODEL: a checkpoint's folder, a\n"
    "config.json, or a preset's name (polyreme plan MODEL names them).\n"
    "Exit codes: 0 it fits, 3 it does not, 2 a wrong argument, 1 anything else.";

constexpr int kDoesNotFit = 3;
constexpr size_t kMaxAlternatives = 8;

struct PlanConfig {
  ServeConfig serve;
  std::string gpu;
  std::string gpu_file;
  std::string kv_cache_dtype = "auto";
  std::string quantization = "none";
  std::string role;
  std::string budget;
  std::string claims;
  std::string output;
  bool recommend = false;
  bool sweep = false;
  bool json = false;
};

// What was printed, and the exit code.
struct Answer {
  std::string text;
  int code = 0;
};

void AddLaunchFlags(FlagSet& flags, PlanConfig& config) {
  ServeConfig& serve = config.serve;
  flags.Section("Launch");
  flags.Add({"--gpu"}, "NAME[:N]", "which GPUs, and how many (default: one a rank); list: a table",
            SetString(&config.gpu));
  flags.Add(
      {"--gpu-file"}, "FILE",
      "adds GPUs, or prices: {\"gpus\": [{\"name\": \"h200\", \"price_per_hour\": 3.5}, ...]}",
      SetString(&config.gpu_file));
  flags.Add({"--device"}, "DEVICE", "cuda (default) or cpu, whose cache needs a size by hand",
            SetOneOf(&serve.device, {"cuda", "cpu"}));
  flags.Add({"--tensor-parallel-size", "-tp", "--tp-size", "--tp"}, "T",
            "shards of each layer (default: the GPUs of --gpu, else 1)",
            SetInt(&serve.tensor_parallel_size, 1, limits::kMaxRanks));
  flags.Add({"--pipeline-parallel-size", "-pp", "--pp-size", "--pp"}, "P",
            "stages of layers (default 1)",
            SetInt(&serve.pipeline_parallel_size, 1, limits::kMaxStages));
  flags.Add({"--pipeline-layers"}, "N,N,...", "layers of each stage (default: dealt by bytes)",
            SetIntList(&serve.pipeline_layers));
  flags.Add({"--max-model-len", "--context", "--context-length", "--max-seq-len"}, "N",
            "prompt and output tokens of one sequence (default: the model's)",
            SetInt(&serve.max_model_len, 1, limits::kMaxPositions));
  flags.Add({"--max-num-seqs", "--max-running-requests", "--max-batch-size", "--parallel"}, "N",
            "sequences running at once (default 256)",
            SetInt(&serve.max_num_seqs, 1, limits::kMaxSequences));
  flags.Add({"--max-num-batched-tokens", "--chunked-prefill-size", "--max-num-tokens"}, "N",
            "tokens of one step (default: 8192 on a GPU, 512 on CPU)",
            SetInt(&serve.max_num_batched_tokens, 1, limits::kMaxStepTokens));
  flags.Add({"--dtype"}, "TYPE", "auto (the checkpoint's own), bfloat16, float16 or float32",
            SetOneOf(&serve.dtype, {"auto", "bfloat16", "float16", "float32"}));
  flags.Add({"--kv-cache-dtype"}, "TYPE", "auto (as --dtype), or fp8: arithmetic only",
            SetOneOf(&config.kv_cache_dtype, {"auto", "bfloat16", "float16", "float32", "fp8"}));
  flags.Add({"--quantization", "-q"}, "NAME",
            "of the layers' weights: none, fp8, awq, gptq or w4a16; arithmetic only",
            SetOneOf(&config.quantization, {"none", "fp8", "awq", "gptq", "w4a16"}));
  flags.Add({"--gpu-memory-utilization", "--mem-fraction-static"}, "PART",
            "of a GPU's memory (default 0.92)", SetFraction(&serve.gpu_memory_utilization));
  flags.Add({"--block-size", "--page-size"}, "N", "tokens per cache block (default 16)",
            SetInt(&serve.block_size, 1, limits::kMaxTokensPerBlock));
  flags.Add({"--kv-cache-memory-bytes"}, "BYTES", "cache of one rank, e.g. 4G",
            SetBytes(&serve.kv_cache_memory_bytes));
  flags.Add({"--num-gpu-blocks-override", "--num-blocks"}, "N", "cache blocks, by hand",
            SetInt(&serve.num_blocks, 1, limits::kMaxBlocks));
  flags.Add({"--attention-backend"}, "NAME", "auto, flashinfer or own",
            SetOneOf(&serve.attention_backend, {"auto", "flashinfer", "own"}));
}

void AddQuestionFlags(FlagSet& flags, PlanConfig& config) {
  flags.Section("Questions");
  flags.Add({"--sweep"}, "",
            "contexts x batches x layouts x quantisations; with --output also as figures",
            SetFlag(&config.sweep));
  flags.Add({"--recommend"}, "", "which GPUs for --role within --budget",
            SetFlag(&config.recommend));
  flags.Add({"--role"}, "ROLE",
            "ide (local help), api (a team's), farm (contests: 128K contexts, many samples), scan "
            "(offline, repositories)",
            SetString(&config.role));
  flags.Add({"--budget"}, "X", "per hour if --gpu-file has prices, else GPUs",
            SetString(&config.budget));
  flags.Add({"--claims"}, "FILE", "judge published figures of MODEL: a Markdown table",
            SetString(&config.claims));
  flags.Add({"--output"}, "DIR", "where --sweep writes data, gnuplot scripts and pictures",
            SetString(&config.output));
  flags.Add({"--json"}, "", "one JSON object in place of the tables", SetFlag(&config.json));
  flags.Add({"--help", "-h"}, "", "this text", SetFlag(&config.serve.help));
}

// Without -tp and -pp, the GPUs that are named: all in shards, or in as few stages as can be.
absl::Status SettleLayout(const plan::ModelSpec& spec, int32_t gpus, ServeConfig& serve) {
  const int32_t ranks = serve.tensor_parallel_size * serve.pipeline_parallel_size;
  if (gpus == 0 || gpus == ranks) return absl::OkStatus();
  if (ranks > 1) {
    return InvalidArgument("-tp {} x -pp {} are {} ranks, --gpu names {} GPU(s): one a rank",
                           serve.tensor_parallel_size, serve.pipeline_parallel_size, ranks, gpus);
  }
  const std::vector<sizing::RankLayout> layouts = sizing::LayoutsOf(spec, gpus);
  if (layouts.empty()) {
    return InvalidArgument("the model cannot be split over {} GPUs; give -tp and -pp", gpus);
  }
  serve.tensor_parallel_size = layouts[0].shards;
  serve.pipeline_parallel_size = layouts[0].stages;
  return absl::OkStatus();
}

absl::StatusOr<sizing::LaunchSettings> SettingsOf(PlanConfig& config, const plan::ModelSpec& spec,
                                                  const sizing::GpuChoice& choice) {
  ServeConfig& serve = config.serve;
  RETURN_IF_ERROR(SettleLayout(spec, choice.count, serve));
  SetDeviceDefaults(serve);
  sizing::LaunchSettings settings;
  settings.spec = spec;
  settings.gpu = choice.gpu;
  settings.shards = serve.tensor_parallel_size;
  settings.stages = serve.pipeline_parallel_size;
  settings.layers_per_stage = serve.pipeline_layers;
  ASSIGN_OR_RETURN(const int32_t max_model_len, ResolveMaxModelLen(serve, spec));
  settings.step = {.max_num_seqs = serve.max_num_seqs,
                   .max_num_batched_tokens = serve.max_num_batched_tokens,
                   .block_size = serve.block_size,
                   .max_model_len = max_model_len,
                   .num_blocks = serve.num_blocks};
  settings.on_gpu = serve.device == "cuda";
  ASSIGN_OR_RETURN(settings.dtype, ResolveDtype(serve, spec));
  // Where bfloat16 is only what the checkpoint happens to be stored in.
  if (settings.on_gpu && serve.dtype == "auto" && settings.dtype == DType::kBF16 &&
      !settings.gpu.has_bf16()) {
    settings.dtype = DType::kF16;
  }
  settings.kv_dtype = settings.dtype;
  if (config.kv_cache_dtype == "fp8") {
    settings.kv_dtype = DType::kU8;
  } else if (config.kv_cache_dtype != "auto") {
    ASSIGN_OR_RETURN(settings.kv_dtype, ParseDType(config.kv_cache_dtype));
  }
  ASSIGN_OR_RETURN(settings.quantization, sizing::ParseQuantization(config.quantization));
  settings.attention = AttentionOf(serve.attention_backend);
  settings.head_chunk_samples = HeadChunkSamples(serve);
  settings.utilization = serve.gpu_memory_utilization;
  settings.kv_bytes_budget = serve.kv_cache_memory_bytes;
  if (!settings.on_gpu && settings.kv_bytes_budget == 0 && serve.num_blocks == 0) {
    return InvalidArgument(
        "--device cpu: what a host has free is not known here: give --kv-cache-memory-bytes or "
        "--num-gpu-blocks-override");
  }
  return settings;
}

absl::StatusOr<Answer> AnswerSweep(const PlanConfig& config, const std::string& model,
                                   const sizing::LaunchSettings& settings) {
  if (!settings.on_gpu) return InvalidArgument("--sweep needs --gpu");
  ASSIGN_OR_RETURN(const std::vector<sizing::SweepRow> rows, sizing::Sweep(settings));
  Answer answer;
  answer.text =
      config.json ? sizing::SweepJson(model, rows).Dump() + "\n" : sizing::SweepText(model, rows);
  if (config.output.empty()) return answer;
  ASSIGN_OR_RETURN(const plot::Report report,
                   plot::WriteFigures(config.output, sizing::SweepFigures(model, settings, rows)));
  std::fprintf(stderr, "%s: %zu files%s%s\n", config.output.c_str(), report.files.size(),
               report.note.empty() ? "" : "; ", report.note.c_str());
  return answer;
}

absl::StatusOr<Answer> AnswerRecommend(PlanConfig& config, const sizing::PlannedModel& model,
                                       const sizing::GpuTable& table) {
  double budget = 0;
  if (!absl::SimpleAtod(config.budget, &budget) || !(budget > 0 && budget <= 1e9)) {
    return InvalidArgument("--recommend needs --budget, a number above 0, got '{:.40}'",
                           config.budget);
  }
  ASSIGN_OR_RETURN(const sizing::Role role, sizing::FindRole(config.role));
  sizing::GpuChoice any;
  any.gpu.compute_capability = 90;  // so that the checkpoint's own type stands
  ASSIGN_OR_RETURN(const sizing::LaunchSettings settings, SettingsOf(config, model.spec, any));
  const sizing::Recommendations found = sizing::Recommend(settings, table, role, budget, 6);
  return Answer{config.json ? sizing::RecommendJson(model.name, role, found, budget).Dump() + "\n"
                            : sizing::RecommendText(model.name, role, found, budget, table),
                found.launches.empty() ? kDoesNotFit : 0};
}

absl::StatusOr<Answer> AnswerPlan(const PlanConfig& config, const std::string& model,
                                  const sizing::LaunchSettings& settings,
                                  const sizing::GpuTable& table) {
  ASSIGN_OR_RETURN(sizing::LaunchPlan plan, sizing::MakeLaunchPlan(settings));
  sizing::PlanReport report{.model = model,
                            .settings = settings,
                            .plan = std::move(plan),
                            .speed = {},
                            .alternatives = {},
                            .currency = table.currency()};
  if (settings.on_gpu) report.speed = sizing::SpeedOf(settings, report.plan);
  if (!report.plan.fits) {
    report.alternatives = sizing::FindAlternatives(settings, table, kMaxAlternatives);
  }
  return Answer{config.json ? sizing::PlanJson(report).Dump() + "\n" : sizing::PlanText(report),
                report.plan.fits ? 0 : kDoesNotFit};
}

absl::StatusOr<Answer> Run(PlanConfig& config, const Arguments& operands) {
  sizing::GpuTable table;
  if (!config.gpu_file.empty()) RETURN_IF_ERROR(table.AddFile(config.gpu_file));
  if (config.gpu == "list") {
    return Answer{config.json ? sizing::GpuTableJson(table) : sizing::GpuTableText(table)};
  }
  if (operands.size() != 1) {
    return InvalidArgument("expected one MODEL, got {}; see --help", operands.size());
  }
  ASSIGN_OR_RETURN(const sizing::PlannedModel model, sizing::FindModel(operands[0]));
  if (!config.claims.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(config.claims, limits::kMaxConfigFileBytes));
    ASSIGN_OR_RETURN(const std::vector<sizing::Claim> claims,
                     sizing::ParseClaims(text, config.claims));
    ASSIGN_OR_RETURN(std::string judged, sizing::ClaimsText(claims, model.spec, table));
    return Answer{std::move(judged)};
  }
  if (config.recommend) return AnswerRecommend(config, model, table);
  sizing::GpuChoice choice;
  if (config.serve.device == "cuda") {
    if (config.gpu.empty()) {
      return InvalidArgument("expected --gpu NAME[:N] (--gpu list shows them), or --device cpu");
    }
    absl::StatusOr<sizing::GpuChoice> found = sizing::ParseGpuChoice(table, config.gpu);
    if (!found.ok()) return Annotate(found.status(), "--gpu");
    choice = *std::move(found);
  }
  ASSIGN_OR_RETURN(const sizing::LaunchSettings settings, SettingsOf(config, model.spec, choice));
  if (config.sweep) return AnswerSweep(config, model.name, settings);
  return AnswerPlan(config, model.name, settings, table);
}

}  // namespace

int RunPlan(const Arguments& arguments) {
  PlanConfig config;
  config.serve.device = "cuda";
  FlagSet flags(kUsage);
  AddLaunchFlags(flags, config);
  AddQuestionFlags(flags, config);
  Arguments operands;
  const absl::Status parsed = flags.Parse(arguments, operands);
  if (parsed.ok() && config.serve.help) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  const absl::StatusOr<Answer> answer =
      parsed.ok() ? Run(config, operands) : absl::StatusOr<Answer>(parsed);
  if (!answer.ok()) {
    std::fprintf(stderr, "polyreme plan: %s\n", Message(answer.status()).c_str());
    return absl::IsInvalidArgument(answer.status()) || absl::IsNotFound(answer.status()) ? 2 : 1;
  }
  std::fputs(answer->text.c_str(), stdout);
  return answer->code;
}

}  // namespace polyreme::cli
