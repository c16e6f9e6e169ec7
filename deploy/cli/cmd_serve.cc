// The agent: what a launcher starts on every rank, or a person alone on one host. Starts and
// supervises the worker of its rank (alone: of all ranks) and, where rank 0 is, the coordinator.

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "deploy/cli/check_model.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/device_choice.h"
#include "deploy/cli/flight_files.h"
#include "deploy/cli/meeting.h"
#include "deploy/cli/serve_config.h"
#include "parallel/base/log.h"
#include "parallel/launch/agent.h"
#include "parallel/launch/launch_env.h"
#include "worker/weights/dummy.h"

namespace polyreme::cli {
namespace {

constexpr char kUsage[] =
    "usage: polyreme serve MODEL [flags]\n\n"
    "Starts a cluster that holds MODEL in tensor-parallel x pipeline-parallel shards and answers "
    "over HTTP (and gRPC).\n"
    "Alone on a host it starts all ranks; under mpirun or srun the same line starts one rank "
    "each:\n\n"
    "  polyreme serve deploy/demo-model -tp 2\n"
    "  mpirun -np 4 polyreme serve MODEL -tp 2 -pp 2";

absl::Status CheckWorld(const ServeConfig& config, const launch::LaunchEnv& env) {
  const int32_t wanted = config.tensor_parallel_size * config.pipeline_parallel_size;
  if (!env.launched() && env.launcher == launch::Launcher::kNone) return absl::OkStatus();
  if (env.world_size == 1 && env.launcher != launch::Launcher::kFlags) return absl::OkStatus();
  if (env.world_size == wanted) return absl::OkStatus();
  return InvalidArgument(
      "{} started {} ranks, but --tensor-parallel-size {} x --pipeline-parallel-size {} makes {}: "
      "change one of them",
      launch::NameOf(env.launcher), env.world_size, config.tensor_parallel_size,
      config.pipeline_parallel_size, wanted);
}

// One child's command line: our own arguments, plus what only the agent knows.
launch::ChildSpec MakeChild(const std::string& command, const std::vector<std::string>& placement,
                            const Arguments& arguments, const Meeting& meeting,
                            const std::vector<std::string>& api_keys) {
  launch::ChildSpec child;
  child.arguments = {"polyreme", command};
  child.arguments.insert(child.arguments.end(), arguments.begin(), arguments.end());
  child.arguments.insert(child.arguments.end(), placement.begin(), placement.end());
  if (!meeting.file.empty()) {
    child.arguments.insert(child.arguments.end(), {"--meeting-file", meeting.file});
  } else {
    child.arguments.insert(child.arguments.end(), {"--coordinator", meeting.coordinator});
  }
  // Through the environment, never on the command line, which every user of the host can read.
  if (!meeting.job_token.empty()) {
    child.environment.emplace_back(kJobTokenVariable, meeting.job_token);
  }
  if (!api_keys.empty()) {
    child.environment.emplace_back(kApiKeyVariable, fmt::format("{}", fmt::join(api_keys, "\n")));
  }
  return child;
}

// The arguments that children are to have as they are: without API keys that a person may have put
// among them, and without the device, which is settled.
Arguments ForChildren(const Arguments& arguments) {
  Arguments kept;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    const std::string name = argument.substr(0, argument.find('='));
    if (name != "--api-key" && name != "--api_key" && name != "--device") {
      kept.push_back(argument);
    } else if (name == argument) {
      ++i;  // its value is the next one
    }
  }
  return kept;
}

std::vector<launch::ChildSpec> MakeChildren(const ServeConfig& config, const launch::LaunchEnv& env,
                                            const Arguments& arguments, const Meeting& meeting,
                                            FlightKeeper& flights) {
  const int32_t world = config.tensor_parallel_size * config.pipeline_parallel_size;
  const bool alone = env.world_size == 1 && world > 1;
  Arguments kept = ForChildren(arguments);
  kept.insert(kept.begin(), {"--device", config.device});
  std::vector<launch::ChildSpec> children;
  if (env.rank == 0) {
    children.push_back(MakeChild("coordinator",
                                 {"--rank", "0", "--world-size", std::to_string(world)}, kept,
                                 meeting, config.api_keys));
    children.back().title = "coordinator";
    children.back().replaceable = true;
    flights.Add(trace::kCoordinatorRank, children.back());
    children.back().drains = true;
  }
  const int32_t first = alone ? 0 : env.rank;
  const int32_t count = alone ? world : 1;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t local_rank = alone ? i : env.local_rank;
    const int32_t local_size = alone ? world : env.local_size;
    children.push_back(MakeChild(
        "worker",
        {"--rank", std::to_string(first + i), "--world-size", std::to_string(world), "--local-rank",
         std::to_string(local_rank), "--local-size", std::to_string(local_size)},
        kept, meeting, config.api_keys));
    children.back().title = fmt::format("worker rank {}", first + i);
    children.back().replaceable = true;
    flights.Add(first + i, children.back());
  }
  return children;
}

absl::Status SaveCheckpoint(const ServeConfig& config) {
  ASSIGN_OR_RETURN(const plan::ModelSpec spec, plan::ReadModelSpec(config.model));
  weights::SaveOptions options;
  options.seed = config.seed;
  int64_t reported = 0;
  options.progress = [&](int64_t done, int64_t total) {
    constexpr int64_t kStep = int64_t{1} << 30;
    if (done < total && done - reported < kStep) return;
    reported = done;
    LogInfo("saving: {:.1f} of {:.1f} GiB", double(done) / 0x1p30, double(total) / 0x1p30);
  };
  RETURN_IF_ERROR(
      weights::SaveDummyCheckpoint(spec, config.model, config.save_checkpoint, options));
  LogInfo("saved: the dummy model of {} with seed {} is in {}", config.model, config.seed,
          config.save_checkpoint);
  return absl::OkStatus();
}

absl::Status Serve(const Arguments& arguments, ServeConfig config) {
  ASSIGN_OR_RETURN(const launch::LaunchEnv env,
                   launch::ReadLaunchEnv(config.launch, launch::ProcessEnvironment()));
  SetLogName(env.launched() ? fmt::format("agent {}", env.rank) : "agent");
  RETURN_IF_ERROR(CheckWorld(config, env));
  if (!config.save_checkpoint.empty()) {
    return env.rank == 0 ? SaveCheckpoint(config) : absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::string choice, SettleDevice(config));
  RETURN_IF_ERROR(CheckModel(config));
  RETURN_IF_ERROR(CheckDevice(config));
  if (!choice.empty() && env.local_rank == 0) LogInfo("{}", choice);
  ASSIGN_OR_RETURN(const Meeting meeting, ArrangeMeeting(config, env));
  launch::AgentOptions options;
  options.drain_patience = config.shutdown_timeout + absl::Seconds(5);
  options.max_restarts = config.max_restarts;
  options.restart_window = config.restart_window;
  const bool by_hand =
      env.launcher == launch::Launcher::kNone || env.launcher == launch::Launcher::kFlags;
  if (!by_hand) options.launcher = getppid();
  if (env.rank == 0 && !meeting.file.empty()) {
    options.on_first_end = [&] { RemoveMeetingFile(meeting.file); };
  }
  ASSIGN_OR_RETURN(FlightKeeper flights, FlightKeeper::Make(config, env));
  const absl::Status status =
      launch::RunAgent(MakeChildren(config, env, arguments, meeting, flights), options);
  if (!status.ok()) flights.SaveOrphans(status);
  return status;
}

}  // namespace

int RunServe(const Arguments& arguments) {
  ServeConfig config;
  FlagSet flags = ServeFlags(kUsage, config);
  if (absl::Status s = ParseServeArguments(arguments, flags, config); !s.ok()) {
    std::fprintf(stderr, "polyreme serve: %s\n", Message(s).c_str());
    return 2;
  }
  if (config.help) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  const absl::Status status = Serve(arguments, config);
  if (status.ok()) return 0;
  std::fprintf(stderr, "polyreme serve: %s\n", Message(status).c_str());
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

}  // namespace polyreme::cli
