// Wires a worker: from flags to run::RunWorker.

#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <thread>

#include "deploy/cli/build_info.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/device_choice.h"
#include "deploy/cli/flight_files.h"
#include "deploy/cli/meeting.h"
#include "deploy/cli/serve_config.h"
#include "parallel/base/clock.h"
#include "parallel/base/log.h"
#include "parallel/launch/agent.h"
#include "parallel/launch/heart.h"
#include "parallel/launch/host_address.h"
#include "worker/backend/cuda/gpu_choice.h"
#include "worker/backend/cuda/plugin.h"
#include "worker/run/worker_service.h"

namespace polyreme::cli {
namespace {

// A worker ends by the coordinator's word, by its agent's SIGKILL, or when its agent dies; signals
// that a terminal or a launcher sends to everybody must not cut a drain short.
void IgnoreSignals() {
  for (const int signal : launch::kEndSignals) std::signal(signal, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
}

std::string HostName() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

comm::ProcessGroup::Kind KindOf(const std::string& transport) {
  if (transport == "shm") return comm::ProcessGroup::Kind::kSharedMemory;
  if (transport == "tcp") return comm::ProcessGroup::Kind::kTcp;
  return comm::ProcessGroup::Kind::kAuto;
}

// Peers reach us where the coordinator does, unless a flag says otherwise.
absl::StatusOr<std::string> ListenAddress(const ServeConfig& config,
                                          const std::string& coordinator) {
  if (!config.listen_address.empty()) return config.listen_address;
  return launch::OwnAddressTowards(coordinator.substr(0, coordinator.rfind(':')));
}

// The coordinator of a process that takes another's place listens already, or is itself one that
// its agent starts again.
constexpr absl::Duration kRejoinTimeout = absl::Seconds(30);

// What a rank with a GPU needs to know besides what all ranks do.
absl::Status SetGpuOptions(const ServeConfig& config, const plan::ModelSpec& spec,
                           run::WorkerOptions& options) {
  ASSIGN_OR_RETURN(const cuda::CudaPlugin* const plugin, cuda::OpenCudaPlugin());
  ASSIGN_OR_RETURN(const cuda::GpuSystem system, plugin->describe());
  const int32_t local_size = options.ranks_on_host;
  const auto num_gpus = static_cast<int32_t>(system.gpus.size());
  ASSIGN_OR_RETURN(const int32_t index,
                   cuda::ChooseGpu(config.launch.local_rank.value_or(0), local_size, system.gpus,
                                   config.allow_shared_gpu));
  const auto gpu = std::find_if(system.gpus.begin(), system.gpus.end(),
                                [&](const auto& candidate) { return candidate.index == index; });
  CHECK(gpu != system.gpus.end(), "GPU {} was not described", index);
  options.identity.device = cuda::GpuIdentity(options.identity.host, *gpu);
  if (config.allow_shared_gpu) options.ranks_on_device = (local_size + num_gpus - 1) / num_gpus;
  ASSIGN_OR_RETURN(options.backend_options.dtype, ResolveDtype(config, spec));
  options.plan.kv_dtype = options.backend_options.dtype;
  options.backend_options.device_index = index;
  options.backend_options.enforce_eager = config.enforce_eager;
  options.backend_options.cache_directory = CacheDirectory();
  options.backend_options.attention = AttentionOf(config.attention_backend);
  options.memory_utilization = config.gpu_memory_utilization;
  return absl::OkStatus();
}

absl::StatusOr<run::WorkerOptions> MakeWorkerOptions(const ServeConfig& config) {
  if (!config.launch.rank.has_value()) {
    return InvalidArgument("polyreme worker needs --rank; it is started by polyreme serve");
  }
  ASSIGN_OR_RETURN(
      const plan::Topology topology,
      plan::Topology::Make(config.pipeline_parallel_size, config.tensor_parallel_size));
  ASSIGN_OR_RETURN(const plan::ModelSpec spec, plan::ReadModelSpec(config.model));
  run::WorkerOptions options;
  options.model_directory = config.model;
  ASSIGN_OR_RETURN(options.load_format, ResolveLoadFormat(config));
  options.seed = config.seed;
  options.backend = config.device;
  options.topology = topology;
  options.plan.layers_per_stage = config.pipeline_layers;
  options.plan.tokens_per_block = config.block_size;
  ASSIGN_OR_RETURN(options.limits, MakeStepLimits(config, spec, config.num_blocks));
  options.ranks_on_host = config.launch.local_size.value_or(1);
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  options.backend_options.num_threads =
      config.cpu_threads > 0 ? config.cpu_threads : std::max(1, cores / options.ranks_on_host);
  options.head_chunk_samples = HeadChunkSamples(config);
  options.kv_bytes_budget = config.kv_cache_memory_bytes;
  options.transport = KindOf(config.transport);
  options.host_identity = config.host_identity;
  options.join_timeout = config.join_timeout;
  options.rejoin_timeout = config.max_restarts > 0 ? std::min(config.join_timeout, kRejoinTimeout)
                                                   : absl::ZeroDuration();
  options.identity.rank = Rank{*config.launch.rank};
  options.identity.world_size = config.launch.world_size.value_or(topology.world_size());
  options.identity.host = config.host_identity.empty() ? HostName() : config.host_identity;
  options.identity.pid = getpid();
  options.identity.build_id = BuildId();
  options.identity.settings = SharedSettings(config);
  if (config.device == "cuda") RETURN_IF_ERROR(SetGpuOptions(config, spec, options));
  options.coordinator = config.coordinator;
  ASSIGN_OR_RETURN(options.job_token, FindJobToken(config));
  if (const std::optional<std::string> note = launch::NoteOfPredecessor()) {
    const size_t space = note->find(' ');
    options.coordinator = note->substr(0, space);
    options.job_token = note->substr(space + 1);
    options.join_timeout = std::min(options.join_timeout, kRejoinTimeout);
    options.takes_over = true;
  } else if (!config.meeting_file.empty()) {
    ASSIGN_OR_RETURN(MeetingPlace place,
                     WaitForMeetingFile(config.meeting_file, MonotonicNow() + config.join_timeout));
    options.coordinator = place.address;
    options.job_token = place.job_token;
  }
  ASSIGN_OR_RETURN(options.listen_address, ListenAddress(config, options.coordinator));
  return options;
}

}  // namespace

namespace {

// At once, see run::RunWorker. Cancelled: another process ended the launch and has said why.
[[noreturn]] void Leave(const absl::Status& status) {
  if (!absl::IsCancelled(status)) LogError("{}", Message(status));
  std::fflush(nullptr);
  _exit(absl::IsAborted(status) ? launch::kReplaceMe : 1);
}

}  // namespace

int RunWorker(const Arguments& arguments) {
  prctl(PR_SET_NAME, "polyreme-worker");  // in top and pgrep; the agent started /proc/self/exe
  IgnoreSignals();
  ServeConfig config;
  FlagSet flags =
      ServeFlags("usage: polyreme worker MODEL [flags]   (started by polyreme serve)", config);
  if (absl::Status s = ParseServeArguments(arguments, flags, config); !s.ok()) {
    std::fprintf(stderr, "polyreme worker: %s\n", Message(s).c_str());
    return 2;
  }
  if (config.help) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  SetLogName(config.launch.rank.has_value() ? fmt::format("worker {}", *config.launch.rank)
                                            : "worker");
  // From the first moment, so that one that stands still while it starts is found too.
  const SystemClock clock;
  run::LoadWatch load_watch(clock);
  const std::unique_ptr<launch::Heart> heart = launch::Heart::Start();
  absl::Status status = SettleDevice(config).status();
  if (status.ok()) {
    absl::StatusOr<run::WorkerOptions> options = MakeWorkerOptions(config);
    status = options.status();
    if (options.ok()) {
      heart->SetNote(fmt::format("{} {}", options->coordinator, options->job_token));
      options->load_watch = &load_watch;
      heart->SetComplaint([&load_watch] { return load_watch.Complaint(); });
      options->on_serving = [&] { heart->SetServing(); };
      const std::unique_ptr<FlightRecorder> flight = FlightRecorder::Open(config);
      options->recorder = flight->ring();
      options->on_epoch_lost = [&](const absl::Status& why) { flight->Save(why); };
      status = run::RunWorker(*std::move(options));
      flight->End(status);
      if (!status.ok()) Leave(status);
    }
  }
  if (status.ok()) return 0;
  Leave(status);
}

}  // namespace polyreme::cli
