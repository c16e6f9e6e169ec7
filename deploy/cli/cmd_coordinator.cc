// Wires a coordinator: reads what it needs of the checkpoint, gathers the workers, then serves
// until it is told to stop.

#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <memory>
#include <optional>
#include <thread>

#include "coordinator/api/server.h"
#include "coordinator/engine/cluster.h"
#include "coordinator/engine/engine.h"
#include "coordinator/engine/metrics.h"
#include "coordinator/engine/pulsed_link.h"
#include "coordinator/engine/recorded_link.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"
#include "deploy/cli/build_info.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/coordinator_note.h"
#include "deploy/cli/device_choice.h"
#include "deploy/cli/flight_files.h"
#include "deploy/cli/generation_defaults.h"
#include "deploy/cli/meeting.h"
#include "deploy/cli/serve_config.h"
#include "parallel/base/clock.h"
#include "parallel/base/log.h"
#include "parallel/launch/agent.h"
#include "parallel/launch/heart.h"
#include "parallel/plan/cache_blocks.h"
#include "parallel/plan/shard_plan.h"
#include "parallel/step/step_limits.h"
#include "worker/weights/tensor_source.h"

namespace polyreme::cli {
namespace {

// Long enough for workers to hear why they end, short enough for the agent's own patience.
constexpr absl::Duration kStopPatience = absl::Seconds(3);
// Of the time that a drain is given, for all that comes behind the last token.
constexpr absl::Duration kLastWords = absl::Seconds(2);
constexpr absl::Duration kLeastLastWords = absl::Milliseconds(200);
// How often the main thread looks whether it was signalled while it waits for the engine to fail.
constexpr absl::Duration kLook = absl::Milliseconds(100);
// For the ports of a coordinator that was lost to be free again: somebody's connection on its way
// out may have drawn one of them.
constexpr absl::Duration kPortPatience = absl::Seconds(10);

volatile std::sig_atomic_t stop_requested = 0;
void OnTerm(int) {
  stop_requested = 1;
}

void HandleSignals() {
  struct sigaction action {};
  action.sa_handler = OnTerm;
  sigaction(SIGTERM, &action, nullptr);
  // The terminal's Ctrl-C reaches the whole process group; the agent turns it into SIGTERM for us.
  for (const int signal : launch::kEndSignals) {
    if (signal != SIGTERM) std::signal(signal, SIG_IGN);
  }
  std::signal(SIGPIPE, SIG_IGN);
}

// What the checkpoint says to a coordinator.
struct ModelFiles {
  plan::ModelSpec spec;
  std::string fingerprint;
  bool exact_sums = true;  // of the layout, see plan::ShardPlan
  std::unique_ptr<const text::Tokenizer> tokenizer;
  std::optional<text::ChatTemplate> chat_template;
  api::ModelInfo info;
};

absl::StatusOr<std::unique_ptr<const text::Tokenizer>> LoadTokenizer(const std::string& directory) {
  absl::StatusOr<std::unique_ptr<const text::Tokenizer>> tokenizer =
      text::Tokenizer::Load(directory);
  if (!absl::IsNotFound(tokenizer.status())) return tokenizer;
  return NotFound("{}; --tokenizer names the directory of another", Message(tokenizer.status()));
}

absl::StatusOr<ModelFiles> ReadModelFiles(const ServeConfig& config) {
  ModelFiles files;
  std::vector<std::string> notes;
  ASSIGN_OR_RETURN(files.spec, plan::ReadModelSpec(config.model, &notes));
  for (const std::string& note : notes) LogWarning("{}/config.json: {}", config.model, note);
  ASSIGN_OR_RETURN(
      const plan::Topology topology,
      plan::Topology::Make(config.pipeline_parallel_size, config.tensor_parallel_size));
  plan::PlanOptions plan_options;
  plan_options.layers_per_stage = config.pipeline_layers;
  ASSIGN_OR_RETURN(const plan::ShardPlan plan,
                   plan::ShardPlan::Make(files.spec, topology, plan_options));
  files.exact_sums = plan.exact_sums();
  ASSIGN_OR_RETURN(const weights::LoadFormat format, ResolveLoadFormat(config));
  ASSIGN_OR_RETURN(const std::unique_ptr<weights::TensorSource> source,
                   weights::OpenTensorSource(config.model, files.spec, format, config.seed));
  files.fingerprint = source->fingerprint();
  const std::string& text_directory = config.tokenizer.empty() ? config.model : config.tokenizer;
  ASSIGN_OR_RETURN(files.tokenizer, LoadTokenizer(text_directory));
  if (files.tokenizer->vocab_size() > files.spec.vocabulary) {
    return InvalidArgument(
        "{}: the tokenizer has ids up to {}, but the model has {} rows of logits", text_directory,
        files.tokenizer->vocab_size() - 1, files.spec.vocabulary);
  }
  if (config.chat_template.empty()) {
    ASSIGN_OR_RETURN(files.chat_template, text::ChatTemplate::Load(text_directory));
  } else {
    ASSIGN_OR_RETURN(files.chat_template,
                     text::ChatTemplate::LoadFrom(config.chat_template, text_directory));
  }
  engine::ModelLimits& limits = files.info.limits;
  limits.model_name = ServedName(config);
  ASSIGN_OR_RETURN(limits.max_model_len, ResolveMaxModelLen(config, files.spec));
  limits.vocabulary = static_cast<int32_t>(files.spec.vocabulary);
  limits.eos_tokens = files.spec.eos_tokens;
  limits.max_choices = std::min(limits::kMaxChoices, config.max_num_seqs);
  limits.max_logprobs = limits::kMaxLogprobs;
  limits.allows_priority = config.scheduling_policy == "priority";
  if (config.served_names.size() > 1) {
    files.info.other_names.assign(config.served_names.begin() + 1, config.served_names.end());
  }
  ASSIGN_OR_RETURN(files.info.defaults, ReadGenerationDefaults(config.model));
  files.info.version = kVersion;
  return files;
}

// Opens what listens; the ports of a coordinator before this one must be had again.
template <class Open>
auto TakePorts(bool again, Open open) -> decltype(open()) {
  const absl::Time deadline = MonotonicNow() + (again ? kPortPatience : absl::ZeroDuration());
  for (;;) {
    auto opened = open();
    if (!absl::IsUnavailable(opened.status())) return opened;
    if (stop_requested != 0 || MonotonicNow() >= deadline) {
      if (!again) return opened;
      return Annotate(opened.status(), "a port of the coordinator before this one is not free");
    }
    poll(nullptr, 0, static_cast<int>(absl::ToInt64Milliseconds(kLook)));
  }
}

// The note of the coordinator before this one, with this one's incarnation in it.
absl::StatusOr<CoordinatorNote> FirstNote() {
  const std::optional<std::string> line = launch::NoteOfPredecessor();
  if (!line.has_value()) return CoordinatorNote{};
  ASSIGN_OR_RETURN(CoordinatorNote note, CoordinatorNote::Decode(*line));
  ++note.incarnation;
  return note;
}

absl::StatusOr<std::unique_ptr<engine::Cluster>> OpenCluster(const ServeConfig& config,
                                                             const ModelFiles& files,
                                                             const std::string& job_token,
                                                             CoordinatorNotebook& notebook) {
  ASSIGN_OR_RETURN(
      const plan::Topology topology,
      plan::Topology::Make(config.pipeline_parallel_size, config.tensor_parallel_size));
  engine::ClusterOptions options;
  options.topology = topology;
  const CoordinatorNote note = notebook.note();
  const std::string& address =
      note.incarnation > 1 ? note.cluster_address : config.coordinator;  // workers know the first
  if (!address.empty()) {
    const size_t colon = address.rfind(':');
    int32_t port = 0;
    if (colon == std::string::npos || !SetInt(&port, 1, 65535)(address.substr(colon + 1)).ok()) {
      return InvalidArgument("--coordinator: expected HOST:PORT, got '{}'", address);
    }
    options.listen_address = address.substr(0, colon);
    options.port = port;
  }
  options.incarnation = note.incarnation;
  options.epoch = Epoch{note.epoch.value + 1};
  options.losses = note.losses;
  options.on_epoch = [&notebook](Epoch epoch, const std::vector<absl::Time>& losses) {
    notebook.SetEpoch(epoch, losses);
  };
  options.job_token = job_token;
  options.build_id = BuildId();
  options.settings = SharedSettings(config);
  options.checkpoint = files.fingerprint;
  options.join_timeout = config.join_timeout;
  options.max_restarts = config.max_restarts;
  options.restart_window = config.restart_window;
  options.num_blocks = config.num_blocks;
  options.allow_shared_device = config.allow_shared_gpu;
  ASSIGN_OR_RETURN(const step::StepLimits limits, MakeStepLimits(config, files.spec, 0));
  const auto per_sequence =
      static_cast<int32_t>(plan::BlocksOf(limits.max_model_len, limits.tokens_per_block));
  options.num_blocks_min = per_sequence;
  options.num_blocks_max = static_cast<int32_t>(step::MostBlocks(limits));
  ASSIGN_OR_RETURN(std::unique_ptr<engine::Cluster> cluster, TakePorts(note.incarnation > 1, [&] {
                     return engine::Cluster::Listen(options);
                   }));
  notebook.SetClusterAddress(cluster->address());
  return cluster;
}

std::string Size(int64_t bytes) {
  if (bytes < int64_t{1} << 30) return fmt::format("{:.1f} MiB", double(bytes) / 0x1p20);
  return fmt::format("{:.1f} GiB", double(bytes) / 0x1p30);
}

// "172,464".
std::string Grouped(int64_t number) {
  std::string digits = fmt::format("{}", number);
  for (int64_t place = std::ssize(digits) - 3; place > 0; place -= 3) {
    digits.insert(static_cast<size_t>(place), 1, ',');
  }
  return digits;
}

void LogReady(const ServeConfig& config, const engine::Cluster& cluster, bool exact_sums) {
  const int64_t num_tokens = int64_t{cluster.num_blocks()} * config.block_size;
  for (const engine::RankReport& r : cluster.reports()) {
    const engine::PeerMemory& m = r.memory;
    std::string parts = fmt::format("weights {}, KV {} ({} tokens), step {}", Size(m.weight_bytes),
                                    Size(m.kv_bytes), Grouped(num_tokens), Size(m.step_bytes));
    if (m.num_recorded > 0) {
      parts += fmt::format(", recordings {} ({} in {:.1f} s)", Size(m.recording_bytes),
                           m.num_recorded, m.recording_seconds);
    }
    LogInfo("ready: rank {} on {}: {}, communicator {}, free {}", r.rank.value, r.host, parts,
            Size(m.communicator_bytes), Size(m.free_bytes));
    LogInfo("ready: rank {}: predicted {} bytes (weights {}), measured {} (weights {}): {:+.2f} %",
            r.rank.value, Grouped(m.predicted_bytes), Grouped(m.predicted_weight_bytes),
            Grouped(m.used_bytes), Grouped(m.weight_bytes),
            100.0 * double(m.used_bytes - m.predicted_bytes) / double(m.predicted_bytes));
  }
  if (!exact_sums) {
    LogInfo(
        "ready: this layout's sums are not in the common order: tokens equal other layouts' within "
        "margins only");
  }
  LogInfo("ready: {} cache blocks of {} tokens, {} sequences, {} tokens a step",
          cluster.num_blocks(), config.block_size, config.max_num_seqs,
          config.max_num_batched_tokens);
}

// What stands still behind a heart that beats.
std::string ComplaintOf(const engine::PulsedLink& link, const api::PublicServer& server) {
  const auto complaint = [](const char* thread, absl::Duration stillness) {
    return fmt::format("{} has not come round for {}", thread, absl::FormatDuration(stillness));
  };
  if (const absl::Duration engine = link.Stillness(); engine > limits::kEngineTurnPatience) {
    return complaint("the engine thread", engine);
  }
  if (const absl::Duration io = server.Stillness(); io > limits::kIoTurnPatience) {
    return complaint("an I/O thread of the HTTP server", io);
  }
  return "";
}

// Serves until the engine fails or a signal comes; the failure, or ok after a drain.
absl::Status ServeUntilStopped(const ServeConfig& config, const ModelFiles& files,
                               engine::Cluster& cluster, CoordinatorNotebook& notebook,
                               launch::Heart& heart) {
  engine::EngineOptions options;
  ASSIGN_OR_RETURN(options.limits, MakeStepLimits(config, files.spec, cluster.num_blocks()));
  options.epoch = cluster.epoch();
  options.stages = config.pipeline_parallel_size;
  options.max_num_seqs = config.max_num_seqs;
  options.max_waiting = config.max_num_queued_reqs;
  options.enable_prefix_caching = config.enable_prefix_caching;
  options.max_num_batched_tokens = config.max_num_batched_tokens;
  const absl::Duration last_words = std::min(kLastWords, config.shutdown_timeout / 2);
  options.stop_patience = std::min(options.stop_patience, last_words / 2);
  const SystemClock clock;
  engine::Metrics metrics(files.info.limits.model_name, config.vllm_metrics
                                                            ? engine::Metrics::Names::kOwnAndVllm
                                                            : engine::Metrics::Names::kOwn);
  const std::unique_ptr<FlightRecorder> flight = FlightRecorder::Open(config);
  // Innermost: what is done around a wait is not the wait.
  engine::PulsedLink pulse(cluster.link(), clock);
  std::optional<engine::RecordedLink> recorded;
  if (flight->ring() != nullptr) {
    recorded.emplace(pulse, options.epoch, *flight->ring(),
                     [&](const absl::Status& why) { flight->Save(why); });
  }
  engine::WorkerLink& link =
      recorded.has_value() ? static_cast<engine::WorkerLink&>(*recorded) : pulse;
  engine::Engine engine(options, files.info.limits, link, *files.tokenizer, clock, metrics);
  engine.Start();

  api::EngineBackend backend(engine);
  api::PublicServerOptions faces;
  faces.http.host = config.host;
  const CoordinatorNote note = notebook.note();
  faces.http.port = note.http_port != 0 ? note.http_port : config.port;
  if (config.grpc_port != 0) faces.grpc = api::GrpcOptions{config.host, config.grpc_port};
  faces.api_keys = config.api_keys;
  const text::ChatTemplate* chat_template =
      files.chat_template.has_value() ? &*files.chat_template : nullptr;
  const api::PublicServerParts parts{backend,    *files.tokenizer, chat_template,
                                     files.info, metrics,          clock};
  ASSIGN_OR_RETURN(
      const std::unique_ptr<api::PublicServer> server,
      TakePorts(note.incarnation > 1, [&] { return api::PublicServer::Start(faces, parts); }));
  notebook.SetPublicPorts(server->bound_port(), server->bound_grpc_port());
  LogReady(config, cluster, files.exact_sums);
  LogInfo("ready: serving {} at http://{}:{}{}", files.info.limits.model_name, config.host,
          server->bound_port(),
          config.grpc_port == 0
              ? ""
              : fmt::format(" and grpc://{}:{}", config.host, server->bound_grpc_port()));
  heart.SetServing();
  heart.SetComplaint([&pulse, &server] { return ComplaintOf(pulse, *server); });

  absl::Status failure;
  while (stop_requested == 0 && failure.ok()) {
    failure = engine.WaitUntilFailed(MonotonicNow() + kLook);
    if (failure.ok()) failure = cluster.failure();
  }
  heart.SetComplaint(nullptr);  // their threads end
  // Workers first: their collectives wait for the lost one until they are told.
  if (!failure.ok()) cluster.Stop(failure, MonotonicNow() + kStopPatience);
  if (failure.ok()) {
    const absl::Time end = MonotonicNow() + config.shutdown_timeout;
    LogInfo("stopping: no new requests; what runs may finish within {}",
            absl::FormatDuration(config.shutdown_timeout - last_words));
    server->Drain();
    engine.Drain(end - last_words);
    // Its streams end with an error before their connections are cut.
    engine.Stop();
    server->Stop(std::max(end - last_words / 2, MonotonicNow() + kLeastLastWords));
  }
  server->Stop(MonotonicNow() + kStopPatience);
  engine.Stop();
  flight->End(failure);
  return failure;
}

// A signal must end the wait for ranks and weights too.
absl::Status WaitUntilReadyOrStopped(engine::Cluster& cluster) {
  const std::jthread watch([&](const std::stop_token& done) {
    while (!done.stop_requested()) {
      if (stop_requested != 0)
        return cluster.Cancel(Cancelled("stopped by a signal before it was ready"));
      poll(nullptr, 0, static_cast<int>(absl::ToInt64Milliseconds(kLook)));
    }
  });
  return cluster.WaitUntilReady();
}

absl::Status Coordinate(const ServeConfig& config) {
  const std::unique_ptr<launch::Heart> heart = launch::Heart::Start();
  ASSIGN_OR_RETURN(CoordinatorNote first, FirstNote());
  const bool takes_over = first.incarnation > 1;
  CoordinatorNotebook notebook(std::move(first), *heart);
  ASSIGN_OR_RETURN(const ModelFiles files, ReadModelFiles(config));
  ASSIGN_OR_RETURN(const std::string job_token, FindJobToken(config));
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::Cluster> cluster,
                   OpenCluster(config, files, job_token, notebook));
  // Who comes later knows the address from the one before it.
  const bool meets_by_file = !config.meeting_file.empty() && !takes_over;
  if (meets_by_file) {
    RETURN_IF_ERROR(WriteMeetingFile(config.meeting_file, cluster->address(), job_token));
  }
  absl::Status status = WaitUntilReadyOrStopped(*cluster);
  if (meets_by_file) RemoveMeetingFile(config.meeting_file);
  if (status.ok()) status = ServeUntilStopped(config, files, *cluster, notebook, *heart);
  cluster->Stop(status, MonotonicNow() + kStopPatience);
  return status;
}

}  // namespace

int RunCoordinator(const Arguments& arguments) {
  SetLogName("coordinator");
  prctl(PR_SET_NAME, "polyreme-coord");  // in top and pgrep; the agent started /proc/self/exe
  HandleSignals();
  ServeConfig config;
  FlagSet flags =
      ServeFlags("usage: polyreme coordinator MODEL [flags]   (started by polyreme serve)", config);
  if (absl::Status s = ParseServeArguments(arguments, flags, config); !s.ok()) {
    std::fprintf(stderr, "polyreme coordinator: %s\n", Message(s).c_str());
    return 2;
  }
  if (config.help) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  absl::Status status = SettleDevice(config).status();
  if (status.ok()) status = Coordinate(config);
  if (status.ok()) return 0;
  LogError("{}", Message(status));
  return 1;
}

}  // namespace polyreme::cli
