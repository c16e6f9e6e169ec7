// Everything `polyreme serve`, `coordinator` and `worker` can be told, with vLLM's spellings.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "deploy/cli/flags.h"
#include "parallel/base/limits.h"
#include "parallel/base/status.h"
#include "parallel/launch/launch_env.h"
#include "parallel/plan/model_spec.h"
#include "parallel/step/step_plan.h"
#include "worker/weights/tensor_source.h"

namespace polyreme::cli {

inline constexpr char kApiKeyVariable[] = "POLYREME_API_KEY";

struct ServeConfig {
  // Model.
  std::string model;                      // a Hugging Face directory
  std::vector<std::string> served_names;  // empty: the directory's name
  std::string dtype = "auto";
  std::string load_format = "auto";
  uint64_t seed = 0;            // of a dummy model's weights
  std::string save_checkpoint;  // a directory to write the dummy model to, instead of serving it
  int32_t max_model_len = 0;    // 0: the model's own
  std::string chat_template;    // a file; empty: the checkpoint's
  std::string tokenizer;        // a directory; empty: the model's

  // Layout.
  int32_t tensor_parallel_size = 1;
  int32_t pipeline_parallel_size = 1;
  std::vector<int64_t> pipeline_layers;  // by hand
  std::string device = "auto";           // settled by SettleDevice
  bool allow_shared_gpu = false;
  std::string transport = "auto";  // shm, tcp
  int32_t cpu_threads = 0;         // of one rank; 0: the host's cores shared by its ranks

  // Cache and steps.
  int32_t block_size = 16;
  int64_t kv_cache_memory_bytes = 0;  // of one rank; 0: chosen
  int32_t num_blocks = 0;             // 0: from the memory
  int32_t max_num_seqs = 256;
  int32_t max_num_batched_tokens = 0;  // 0: by the device, see SettleDevice
  bool enable_prefix_caching = true;
  std::string scheduling_policy = "fcfs";                      // or priority
  int32_t max_num_queued_reqs = limits::kMaxWaitingSequences;  // that have not begun to run
  double gpu_memory_utilization = 0.92;
  std::string attention_backend = "auto";
  bool enforce_eager = false;

  // Launch.
  launch::LaunchFlags launch;
  std::string coordinator;     // host:port of the cluster's listener
  std::string listen_address;  // where this rank's transports listen
  std::string host_identity;   // in place of the machine's own: two "hosts" on one machine in tests
  std::string job_token_file;
  absl::Duration join_timeout = absl::Seconds(120);
  absl::Duration shutdown_timeout = absl::Seconds(30);
  int32_t max_restarts = 3;  // of lost workers within restart_window; then the launch ends
  absl::Duration restart_window = absl::Minutes(10);
  std::string flight_recorder_dir;  // of records of failures; empty: the default; "off": none
  std::string meeting_file;         // internal: where the agent's children find the coordinator

  // Public faces.
  std::string host = "127.0.0.1";
  int32_t port = 8000;
  int32_t grpc_port = 0;  // 0: none unless given
  std::vector<std::string> api_keys;
  bool vllm_metrics = false;
  bool help = false;
};

// The flags of one sub-command over `config` (borrowed).
FlagSet ServeFlags(const std::string& usage, ServeConfig& config);
// Parses `arguments`, takes the model from the positional argument or --model, checks how flags
// relate.
absl::Status ParseServeArguments(const std::vector<std::string>& arguments, FlagSet& flags,
                                 ServeConfig& config);

// "name=value" lines of all that the ranks must agree on; compared at join, so that a differing
// rank can be told what differs.
std::string SharedSettings(const ServeConfig& config);

// Settles what follows from the device, once --device is "cpu" or "cuda" (device_choice.h).
void SetDeviceDefaults(ServeConfig& config);
// Type of activations, weights and cache on the device that is settled. InvalidArgument: the CPU
// has float32 only.
absl::StatusOr<DType> ResolveDtype(const ServeConfig& config, const plan::ModelSpec& spec);
absl::StatusOr<weights::LoadFormat> ResolveLoadFormat(const ServeConfig& config);
// The context length to serve: the flag's or the model's. InvalidArgument if the flag asks for more
// than the model has.
absl::StatusOr<int32_t> ResolveMaxModelLen(const ServeConfig& config, const plan::ModelSpec& spec);
// What a step may ask for, the same on the coordinator and every worker.
absl::StatusOr<step::StepLimits> MakeStepLimits(const ServeConfig& config,
                                                const plan::ModelSpec& spec, int32_t num_blocks);
// How many samples' logits are in memory at once.
int64_t HeadChunkSamples(const ServeConfig& config);
std::string ServedName(const ServeConfig& config);

}  // namespace polyreme::cli
