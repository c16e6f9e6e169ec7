#include "deploy/cli/serve_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "absl/strings/numbers.h"
#include "parallel/step/step_limits.h"

namespace polyreme::cli {
namespace {

constexpr int32_t kMaxInt = 1 << 30;

FlagSet::Setter SetOptionalInt(std::optional<int32_t>* target, int32_t min) {
  return [=](const std::string& text) -> absl::Status {
    int32_t value = 0;
    RETURN_IF_ERROR(SetInt(&value, min, limits::kMaxRanks)(text));
    *target = value;
    return absl::OkStatus();
  };
}

FlagSet::Setter SetSeed(uint64_t* target) {
  return [=](const std::string& text) -> absl::Status {
    if (absl::SimpleAtoi(text, target)) return absl::OkStatus();
    return InvalidArgument("expected an integer from 0 to 2^64 - 1, got '{:.40}'", text);
  };
}

void AddModelFlags(FlagSet& flags, ServeConfig& c) {
  flags.Section("Model");
  flags.Add({"--model"}, "DIR", "a Hugging Face directory (or the first argument)",
            SetString(&c.model));
  flags.Add({"--served-model-name"}, "NAME...", "the name that requests use (may be repeated)",
            AppendString(&c.served_names));
  flags.Add({"--tokenizer"}, "DIR", "where tokenizer.json is, if not in MODEL",
            SetString(&c.tokenizer));
  flags.Add({"--chat-template"}, "FILE", "a Jinja chat template instead of the checkpoint's",
            SetString(&c.chat_template));
  flags.Add(
      {"--dtype"}, "TYPE",
      "auto (the checkpoint's own), bfloat16, float16 or float32, of arithmetic and cache on a "
      "GPU; on CPU both are float32 whatever is stored",
      SetOneOf(&c.dtype, {"auto", "bfloat16", "float16", "float32"}));
  flags.Add({"--load-format"}, "FORMAT",
            "auto, safetensors, or dummy: random weights of config.json's sizes, no files",
            SetOneOf(&c.load_format, {"auto", "safetensors", "dummy"}));
  flags.Add({"--seed"}, "N", "of a dummy model's weights (default 0)", SetSeed(&c.seed));
  flags.Add({"--save-checkpoint"}, "DIR",
            "write the dummy model to DIR as a checkpoint, and end without serving",
            SetString(&c.save_checkpoint));
  flags.Add({"--max-model-len", "--context-length", "--max-seq-len"}, "N",
            "prompt and output tokens of one sequence (default: the model's)",
            SetInt(&c.max_model_len, 1, limits::kMaxPositions));
}

void AddLayoutFlags(FlagSet& flags, ServeConfig& c) {
  flags.Section("Layout");
  flags.Add({"--tensor-parallel-size", "-tp", "--tp-size", "--tp"}, "T",
            "shards of each layer (default 1)",
            SetInt(&c.tensor_parallel_size, 1, limits::kMaxRanks));
  flags.Add({"--pipeline-parallel-size", "-pp", "--pp-size", "--pp"}, "P",
            "stages of layers (default 1)",
            SetInt(&c.pipeline_parallel_size, 1, limits::kMaxStages));
  flags.Add({"--pipeline-layers"}, "N,N,...", "layers of each stage (default: dealt by bytes)",
            SetIntList(&c.pipeline_layers));
  flags.Add({"--device"}, "DEVICE",
            "auto (cuda where a GPU and its plugin are there, else cpu), cpu or cuda",
            SetOneOf(&c.device, {"auto", "cpu", "cuda"}));
  flags.Add({"--allow-shared-gpu"}, "", "let several ranks compute on one GPU",
            SetFlag(&c.allow_shared_gpu));
  flags.Add({"--transport"}, "KIND", "between ranks: auto, shm (one host) or tcp",
            SetOneOf(&c.transport, {"auto", "shm", "tcp"}));
  flags.Add({"--cpu-threads"}, "N", "threads of one rank (default: cores / ranks of the host)",
            SetInt(&c.cpu_threads, 1, 1024));
}

void AddCacheFlags(FlagSet& flags, ServeConfig& c) {
  flags.Section("Cache and steps");
  flags.Add({"--block-size", "--page-size"}, "N", "tokens per cache block (default 16)",
            SetInt(&c.block_size, 1, limits::kMaxTokensPerBlock));
  flags.Add(
      {"--kv-cache-memory-bytes"}, "BYTES",
      "cache of one rank, e.g. 4G (default: on a GPU what --gpu-memory-utilization leaves, on "
      "CPU a quarter of free memory)",
      SetBytes(&c.kv_cache_memory_bytes));
  flags.Add({"--gpu-memory-utilization", "--mem-fraction-static"}, "PART",
            "of a GPU's memory, for weights, steps and cache together (default 0.92)",
            SetFraction(&c.gpu_memory_utilization));
  flags.Add({"--num-gpu-blocks-override", "--num-blocks"}, "N",
            "cache blocks, whatever memory says", SetInt(&c.num_blocks, 1, limits::kMaxBlocks));
  flags.Add({"--max-num-seqs", "--max-running-requests", "--max-batch-size", "--parallel"}, "N",
            "sequences running at once (default 256)",
            SetInt(&c.max_num_seqs, 1, limits::kMaxSequences));
  flags.Add({"--max-num-batched-tokens", "--chunked-prefill-size", "--max-num-tokens"}, "N",
            "tokens of one step (default: 8192 on a GPU, 512 on CPU)",
            SetInt(&c.max_num_batched_tokens, 1, limits::kMaxStepTokens));
  flags.Add({"--enable-prefix-caching"}, "", "share blocks of equal beginnings (default)",
            SetFlag(&c.enable_prefix_caching));
  flags.Add({"--no-enable-prefix-caching"}, "", "share blocks only between choices of one request",
            [&c](const std::string&) {
              c.enable_prefix_caching = false;
              return absl::OkStatus();
            });
  flags.Add({"--scheduling-policy"}, "POLICY",
            "fcfs (first come, first served), or priority: by the requests' field `priority`, "
            "lower ones first and preempted last, then by arrival",
            SetOneOf(&c.scheduling_policy, {"fcfs", "priority"}));
  flags.Add({"--max-num-queued-reqs"}, "N",
            "waiting requests, choices counted one by one; one more is refused at once with 429 "
            "(default 4096)",
            SetInt(&c.max_num_queued_reqs, 1, limits::kMaxWaitingSequences));
  flags.Add({"--attention-backend"}, "NAME", "on a GPU: auto, flashinfer or own",
            SetOneOf(&c.attention_backend, {"auto", "flashinfer", "own"}));
  flags.Add({"--enforce-eager"}, "", "on a GPU: record no steps, launch each kernel anew",
            SetFlag(&c.enforce_eager));
}

void AddLaunchFlags(FlagSet& flags, ServeConfig& c) {
  flags.Section("Launch (under mpirun or srun ranks are found by themselves)");
  flags.Add({"--rank"}, "R", "this process's rank", SetOptionalInt(&c.launch.rank, 0));
  flags.Add({"--world-size"}, "N", "number of ranks", SetOptionalInt(&c.launch.world_size, 1));
  flags.Add({"--local-rank"}, "R", "rank on this host", SetOptionalInt(&c.launch.local_rank, 0));
  flags.Add({"--local-size"}, "N", "ranks on this host", SetOptionalInt(&c.launch.local_size, 1));
  flags.Add({"--coordinator", "--dist-init-addr"}, "HOST:PORT",
            "the cluster's listener on rank 0 (needed across hosts)", SetString(&c.coordinator));
  flags.Add(
      {"--listen-address"}, "ADDRESS",
      "where peers on other hosts reach this rank (default: where the coordinator is seen from)",
      SetString(&c.listen_address));
  flags.Add({"--host-identity"}, "NAME", "treat this rank as on a host of this name (for tests)",
            SetString(&c.host_identity));
  flags.Add({"--job-token-file"}, "FILE",
            "secret of this job, the same on all hosts (or POLYREME_JOB_TOKEN)",
            SetString(&c.job_token_file));
  flags.Add({"--join-timeout"}, "SECONDS", "how long to wait for all ranks (default 120)",
            SetSeconds(&c.join_timeout));
  flags.Add({"--shutdown-timeout"}, "SECONDS",
            "from SIGTERM to the end: requests may finish until 2 seconds before it, or half of a "
            "shorter one (default 30)",
            SetSeconds(&c.shutdown_timeout));
  flags.Add({"--max-restarts"}, "N",
            "how often lost workers are replaced within --restart-window before the launch ends "
            "(default 3)",
            SetInt(&c.max_restarts, 0, 1000));
  flags.Add({"--restart-window"}, "SECONDS", "(default 600)", SetSeconds(&c.restart_window));
  flags.Add(
      {"--flight-recorder-dir"}, "DIR",
      "where ranks leave their last steps and collectives after a failure, for polyreme trace "
      "(default: polyreme-UID-flight in TMPDIR; off: nowhere)",
      SetString(&c.flight_recorder_dir));
  flags.Add({"--meeting-file"}, "FILE", "(set by the agent for its children)",
            SetString(&c.meeting_file));
}

void AddFaceFlags(FlagSet& flags, ServeConfig& c) {
  flags.Section("Faces");
  flags.Add({"--host"}, "ADDRESS", "public address (default 127.0.0.1; any other needs --api-key)",
            SetString(&c.host));
  flags.Add({"--port"}, "PORT", "HTTP (default 8000; 0: any free one)", SetInt(&c.port, 0, 65535));
  flags.Add({"--grpc-port"}, "PORT", "public gRPC (default: off)", SetInt(&c.grpc_port, 1, 65535));
  flags.Add({"--api-key"}, "KEY...", "required from clients (may be repeated; or POLYREME_API_KEY)",
            AppendString(&c.api_keys));
  flags.Add({"--vllm-metrics"}, "", "also emit metrics under their vllm: names",
            SetFlag(&c.vllm_metrics));
  flags.Add({"--help", "-h"}, "", "this text", SetFlag(&c.help));
  // Flags of vLLM that ask for what is always so here, or only for more or fewer log lines.
  flags.Ignore({"--enable-chunked-prefill"}, "");
  flags.Ignore({"--disable-log-requests"}, "");
  flags.Ignore({"--disable-log-stats"}, "");
  flags.Ignore({"--trust-remote-code"}, "");
}

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

}  // namespace

FlagSet ServeFlags(const std::string& usage, ServeConfig& config) {
  FlagSet flags(usage);
  AddModelFlags(flags, config);
  AddLayoutFlags(flags, config);
  AddCacheFlags(flags, config);
  AddLaunchFlags(flags, config);
  AddFaceFlags(flags, config);
  return flags;
}

absl::Status ParseServeArguments(const std::vector<std::string>& arguments, FlagSet& flags,
                                 ServeConfig& config) {
  std::vector<std::string> positional;
  RETURN_IF_ERROR(flags.Parse(arguments, positional));
  if (config.help) return absl::OkStatus();
  if (positional.size() > 1) {
    return InvalidArgument("expected one MODEL, got also '{}'", positional[1]);
  }
  if (!positional.empty()) {
    if (!config.model.empty() && config.model != positional[0]) {
      return InvalidArgument("the model is given twice, as '{}' and as --model '{}': keep one",
                             positional[0], config.model);
    }
    config.model = positional[0];
  }
  if (config.model.empty()) {
    return InvalidArgument("expected a MODEL directory; see --help");
  }
  if (!config.pipeline_layers.empty() &&
      std::ssize(config.pipeline_layers) != config.pipeline_parallel_size) {
    return InvalidArgument("--pipeline-layers names {} stages, but --pipeline-parallel-size is {}",
                           config.pipeline_layers.size(), config.pipeline_parallel_size);
  }
  if (config.tensor_parallel_size * config.pipeline_parallel_size > limits::kMaxRanks) {
    return InvalidArgument(
        "--tensor-parallel-size {} x --pipeline-parallel-size {} is more than {} ranks",
        config.tensor_parallel_size, config.pipeline_parallel_size, limits::kMaxRanks);
  }
  if (!config.save_checkpoint.empty() && config.load_format != "dummy") {
    return InvalidArgument("--save-checkpoint writes a dummy model: give --load-format dummy");
  }
  // One key a line, so that the agent can hand several to its children out of sight of `ps`.
  std::istringstream keys(launch::ProcessEnvironment()(kApiKeyVariable).value_or(""));
  for (std::string key; std::getline(keys, key);) {
    if (!key.empty()) config.api_keys.push_back(key);
  }
  if (!IsLoopback(config.host) && config.api_keys.empty()) {
    return InvalidArgument(
        "--host {} can be reached from other machines: give --api-key, or keep the default "
        "127.0.0.1",
        config.host);
  }
  return absl::OkStatus();
}

std::string SharedSettings(const ServeConfig& c) {
  return fmt::format(
      "tensor_parallel_size={}\npipeline_parallel_size={}\npipeline_layers={}\ndtype={}\n"
      "max_model_len={}\nblock_size={}\nnum_blocks={}\nmax_num_seqs={}\nmax_num_batched_tokens={}\n"
      "device={}\ntransport={}\nload_format={}\nseed={}\nattention_backend={}\nenforce_eager={}\n",
      c.tensor_parallel_size, c.pipeline_parallel_size, fmt::join(c.pipeline_layers, ","), c.dtype,
      c.max_model_len, c.block_size, c.num_blocks, c.max_num_seqs, c.max_num_batched_tokens,
      c.device, c.transport, c.load_format, c.seed, c.attention_backend, c.enforce_eager);
}

void SetDeviceDefaults(ServeConfig& config) {
  CHECK(config.device != "auto", "the device is not settled");
  constexpr int32_t kStepTokensOnGpu = 8192;
  // Short enough that decoding sequences do not wait long for a prompt.
  constexpr int32_t kStepTokensOnCpu = 512;
  if (config.max_num_batched_tokens == 0) {
    config.max_num_batched_tokens = config.device == "cpu" ? kStepTokensOnCpu : kStepTokensOnGpu;
  }
}

absl::StatusOr<DType> ResolveDtype(const ServeConfig& config, const plan::ModelSpec& spec) {
  if (config.device == "cpu") {
    if (config.dtype == "auto" || config.dtype == "float32") return DType::kF32;
    return InvalidArgument(
        "--dtype {} needs a GPU: on CPU arithmetic and cache are float32, whatever the checkpoint "
        "is stored in",
        config.dtype);
  }
  if (config.dtype == "bfloat16") return DType::kBF16;
  if (config.dtype == "float16") return DType::kF16;
  if (config.dtype == "float32") return DType::kF32;
  return spec.dtype;
}

absl::StatusOr<weights::LoadFormat> ResolveLoadFormat(const ServeConfig& config) {
  return weights::ParseLoadFormat(config.load_format == "auto" ? "safetensors"
                                                               : config.load_format);
}

absl::StatusOr<int32_t> ResolveMaxModelLen(const ServeConfig& config, const plan::ModelSpec& spec) {
  int64_t own = std::min<int64_t>(spec.max_positions, limits::kMaxPositions);
  if (config.num_blocks > 0) {
    const int64_t cache = int64_t{config.num_blocks} * config.block_size;
    if (config.max_model_len > cache) {
      return InvalidArgument(
          "--max-model-len {} is more than the {} tokens of --num-gpu-blocks-override {} blocks",
          config.max_model_len, cache, config.num_blocks);
    }
    own = std::min(own, cache);
  }
  if (config.max_model_len == 0) return static_cast<int32_t>(own);
  if (config.max_model_len > own) {
    return InvalidArgument("--max-model-len {} is more than the model's {} positions",
                           config.max_model_len, own);
  }
  return config.max_model_len;
}

absl::StatusOr<step::StepLimits> MakeStepLimits(const ServeConfig& config,
                                                const plan::ModelSpec& spec, int32_t num_blocks) {
  CHECK(config.max_num_batched_tokens > 0, "the device's defaults are not set");
  ASSIGN_OR_RETURN(const int32_t max_model_len, ResolveMaxModelLen(config, spec));
  return step::LimitsOf({.max_num_seqs = config.max_num_seqs,
                         .max_num_batched_tokens = config.max_num_batched_tokens,
                         .block_size = config.block_size,
                         .max_model_len = max_model_len,
                         .vocabulary = static_cast<int32_t>(spec.vocabulary),
                         .stages = config.pipeline_parallel_size,
                         .num_blocks = num_blocks});
}

int64_t HeadChunkSamples(const ServeConfig& config) {
  // On a GPU wide enough that a decode step's logits are one product.
  return config.device == "cpu" ? 64 : 256;
}

std::string ServedName(const ServeConfig& config) {
  if (!config.served_names.empty()) return config.served_names[0];
  std::filesystem::path path(config.model);
  if (path.filename().empty()) path = path.parent_path();
  return path.filename().string();
}

}  // namespace polyreme::cli
