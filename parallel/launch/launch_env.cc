// Each launcher is one row: what it calls the rank, the size, and the same within a host.

#include "parallel/launch/launch_env.h"

#include <array>
#include <charconv>
#include <cstdlib>
#include <utility>

#include "parallel/base/limits.h"
#include "parallel/launch/node_list.h"

namespace polyreme::launch {
namespace {

struct Source {
  Launcher launcher;
  std::string_view name;
  std::string_view rank;
  std::string_view size;
  std::array<std::string_view, 2> local_rank;  // either spelling; both must agree
  std::array<std::string_view, 2> local_size;
};

constexpr Source kSources[] = {
    {Launcher::kTorchrun, "torchrun", "RANK", "WORLD_SIZE", {"LOCAL_RANK"}, {"LOCAL_WORLD_SIZE"}},
    {Launcher::kOpenMpi,
     "mpirun (Open MPI)",
     "OMPI_COMM_WORLD_RANK",
     "OMPI_COMM_WORLD_SIZE",
     {"OMPI_COMM_WORLD_LOCAL_RANK"},
     {"OMPI_COMM_WORLD_LOCAL_SIZE"}},
    {Launcher::kPmi,
     "mpiexec (PMI)",
     "PMI_RANK",
     "PMI_SIZE",
     {"MPI_LOCALRANKID", "PMI_LOCAL_RANK"},
     {"MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"}},
    {Launcher::kSlurm,
     "srun (Slurm)",
     "SLURM_PROCID",
     "SLURM_STEP_NUM_TASKS",
     {"SLURM_LOCALID"},
     {}},
};

// Reads variables; remembers the first that is not what it should be.
class Reader {
 public:
  explicit Reader(const Environment& environment) : environment_(environment) {}

  std::string Text(std::string_view name) const {
    return environment_(std::string(name)).value_or("");
  }

  std::optional<int32_t> Number(std::string_view name) {
    if (name.empty()) return std::nullopt;
    const std::optional<std::string> text = environment_(std::string(name));
    if (!text.has_value()) return std::nullopt;
    int32_t value = 0;
    const char* end = text->data() + text->size();
    const auto [stop, error] = std::from_chars(text->data(), end, value);
    if (error == std::errc() && stop == end && value >= 0) return value;
    Refuse(InvalidArgument("{}: expected a number, got '{:.40}'", name, *text));
    return std::nullopt;
  }

  // The number under either name.
  std::optional<int32_t> Either(const std::array<std::string_view, 2>& names) {
    const std::optional<int32_t> first = Number(names[0]);
    const std::optional<int32_t> second = Number(names[1]);
    if (first.has_value() && second.has_value() && *first != *second) {
      Refuse(InvalidArgument("{}={} contradicts {}={}", names[0], *first, names[1], *second));
    }
    return first.has_value() ? first : second;
  }

  void Refuse(absl::Status why) {
    if (status_.ok()) status_ = std::move(why);
  }
  const absl::Status& status() const { return status_; }

 private:
  const Environment& environment_;
  absl::Status status_;
};

absl::Status CheckRange(std::string_view what, int32_t rank, int32_t size) {
  if (size < 1 || size > limits::kMaxRanks) {
    return InvalidArgument("{}: expected 1 to {} ranks, got {}", what, limits::kMaxRanks, size);
  }
  if (rank < 0 || rank >= size) {
    return InvalidArgument("{}: expected a rank in [0, {}), got {}", what, size, rank);
  }
  return absl::OkStatus();
}

// Tasks per node and node names of the step; Slurm gives them for all nodes at once.
absl::Status AddSlurmPlaces(Reader& read, LaunchEnv& env) {
  std::string nodes = read.Text("SLURM_STEP_NODELIST");
  if (nodes.empty()) nodes = read.Text("SLURM_JOB_NODELIST");
  if (!nodes.empty()) {
    absl::StatusOr<std::vector<std::string>> names = ParseNodeList(nodes);
    if (!names.ok()) return Annotate(names.status(), "SLURM_STEP_NODELIST");
    env.nodes = *std::move(names);
  }
  const std::string tasks = read.Text("SLURM_STEP_TASKS_PER_NODE");
  const std::optional<int32_t> node = read.Number("SLURM_NODEID");
  if (tasks.empty() || !node.has_value()) return absl::OkStatus();
  absl::StatusOr<std::vector<int32_t>> counts = ParseTasksPerNode(tasks);
  if (!counts.ok()) return Annotate(counts.status(), "SLURM_STEP_TASKS_PER_NODE");
  if (*node >= std::ssize(*counts)) {
    return InvalidArgument("SLURM_NODEID={} is beyond SLURM_STEP_TASKS_PER_NODE={}", *node, tasks);
  }
  env.local_size = (*counts)[static_cast<size_t>(*node)];
  return absl::OkStatus();
}

// "1997209600.0;tcp://192.0.2.2,10.0.0.1:53209;tcp6://..." -> 192.0.2.2
std::string AddressOfUri(std::string_view uri) {
  constexpr std::string_view kScheme = "tcp://";
  const size_t at = uri.find(kScheme);
  if (at == std::string_view::npos) return "";
  uri.remove_prefix(at + kScheme.size());
  return std::string(uri.substr(0, uri.find_first_of(",:;")));
}

// What else the winning launcher tells: the job, where to meet, who is where.
absl::Status AddDetails(Reader& read, LaunchEnv& env) {
  const auto prefixed = [](std::string_view prefix, const std::string& id) {
    return id.empty() ? std::string() : fmt::format("{}-{}", prefix, id);
  };
  switch (env.launcher) {
    case Launcher::kTorchrun: {
      const std::string run = read.Text("TORCHELASTIC_RUN_ID");
      const bool named = !run.empty() && run != "none";
      env.job_id = prefixed("torchrun", named ? run : read.Text("MASTER_PORT"));
      env.meeting_host = read.Text("MASTER_ADDR");
      // torchrun's own agent may listen there already.
      if (read.Text("TORCHELASTIC_USE_AGENT_STORE") != "True") {
        env.meeting_port = read.Number("MASTER_PORT");
      }
      break;
    }
    case Launcher::kOpenMpi: {
      std::string job = read.Text("PMIX_NAMESPACE");
      if (job.empty()) job = read.Text("OMPI_MCA_ess_base_jobid");
      env.job_id = prefixed("ompi", job);
      env.launch_host = AddressOfUri(read.Text("OMPI_MCA_orte_hnp_uri"));
      env.shared_directory = read.Text("OMPI_MCA_orte_jobfam_session_dir");
      break;
    }
    case Launcher::kPmi: {
      std::string job = read.Text("PMI_JOBID");
      if (job.empty()) job = read.Text("PMI_KVSNAME");
      env.job_id = prefixed("pmi", job);
      env.meeting_host = read.Text("MASTER_ADDR");
      env.meeting_port = read.Number("MASTER_PORT");
      break;
    }
    case Launcher::kSlurm:
      env.job_id =
          fmt::format("slurm-{}.{}", read.Text("SLURM_JOB_ID"), read.Text("SLURM_STEP_ID"));
      env.launch_host = read.Text("SLURM_LAUNCH_NODE_IPADDR");
      RETURN_IF_ERROR(AddSlurmPlaces(read, env));
      break;
    case Launcher::kNone:
    case Launcher::kFlags:
      break;
  }
  return read.status();
}

// What this launcher says; Launcher::kNone if it did not start us.
absl::StatusOr<LaunchEnv> ReadSource(const Source& source, Reader& read) {
  // An allocation's shell has Slurm's variables too, of the allocation. Only a step has an id, and
  // the batch script's own step has none.
  if (source.launcher == Launcher::kSlurm && read.Text("SLURM_STEP_ID").empty()) {
    return LaunchEnv{};
  }
  const std::optional<int32_t> rank = read.Number(source.rank);
  std::optional<int32_t> size = read.Number(source.size);
  if (source.launcher == Launcher::kSlurm && !size.has_value()) size = read.Number("SLURM_NTASKS");
  const std::optional<int32_t> local_rank = read.Either(source.local_rank);
  const std::optional<int32_t> local_size = read.Either(source.local_size);
  RETURN_IF_ERROR(read.status());
  if (!rank.has_value() && !size.has_value()) return LaunchEnv{};
  if (rank.has_value() != size.has_value()) {
    return InvalidArgument("{} is set but {} is not: {} sets both; unset the one or set the other",
                           rank.has_value() ? source.rank : source.size,
                           rank.has_value() ? source.size : source.rank, source.name);
  }
  LaunchEnv env;
  env.launcher = source.launcher;
  env.rank = *rank;
  env.world_size = *size;
  env.local_rank = local_rank.value_or(0);
  env.local_size = local_size.value_or(1);
  RETURN_IF_ERROR(AddDetails(read, env));
  RETURN_IF_ERROR(CheckRange(fmt::format("{}={}, {}={}", source.rank, *rank, source.size, *size),
                             env.rank, env.world_size));
  RETURN_IF_ERROR(CheckRange(fmt::format("{}, ranks of this host", source.name), env.local_rank,
                             env.local_size));
  if (env.local_size > env.world_size) {
    return InvalidArgument("{}: {} ranks on this host but {} in all", source.name, env.local_size,
                           env.world_size);
  }
  return env;
}

// The most trusted launcher that started us. Launchers may be nested (mpirun inside a Slurm step):
// the inner one is the more trusted one and the outer is not asked.
absl::StatusOr<LaunchEnv> ReadLauncher(const Environment& environment) {
  Reader read(environment);
  for (const Source& source : kSources) {
    ASSIGN_OR_RETURN(LaunchEnv env, ReadSource(source, read));
    if (env.launcher == Launcher::kNone) continue;
    const std::optional<int32_t> pmix = read.Number("PMIX_RANK");
    RETURN_IF_ERROR(read.status());
    if (source.launcher == Launcher::kOpenMpi && pmix.has_value() && *pmix != env.rank) {
      return InvalidArgument("PMIX_RANK={} contradicts {}={}", *pmix, source.rank, env.rank);
    }
    return env;
  }
  if (read.Number("PMIX_RANK").has_value()) {
    return InvalidArgument(
        "PMIX_RANK is set but nothing says how many ranks there are; give rank and world size as "
        "flags");
  }
  return LaunchEnv{};
}

absl::Status CheckAgainst(const LaunchFlags& flags, const LaunchEnv& env) {
  const auto check = [&](std::string_view what, std::optional<int32_t> flag, int32_t value) {
    if (!flag.has_value() || *flag == value) return absl::OkStatus();
    return InvalidArgument("the flags say {} {} but {} says {}", what, *flag, NameOf(env.launcher),
                           value);
  };
  RETURN_IF_ERROR(check("rank", flags.rank, env.rank));
  RETURN_IF_ERROR(check("world size", flags.world_size, env.world_size));
  RETURN_IF_ERROR(check("local rank", flags.local_rank, env.local_rank));
  return check("local size", flags.local_size, env.local_size);
}

}  // namespace

Environment ProcessEnvironment() {
  return [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (value == nullptr) return std::nullopt;
    return std::string(value);
  };
}

std::string_view NameOf(Launcher launcher) {
  if (launcher == Launcher::kNone) return "no launcher";
  if (launcher == Launcher::kFlags) return "flags";
  for (const Source& source : kSources) {
    if (source.launcher == launcher) return source.name;
  }
  return "an unknown launcher";
}

absl::StatusOr<LaunchEnv> ReadLaunchEnv(const LaunchFlags& flags, const Environment& environment) {
  if (flags.rank.has_value() != flags.world_size.has_value()) {
    return InvalidArgument(
        "the flags give {}: rank and world size go together",
        flags.rank.has_value() ? "a rank but no world size" : "a world size but no rank");
  }
  if (flags.local_rank.has_value() != flags.local_size.has_value() ||
      (flags.local_rank.has_value() && !flags.rank.has_value())) {
    return InvalidArgument(
        "the flags give a local rank or size without the other, or without rank and world size");
  }
  absl::StatusOr<LaunchEnv> launcher = ReadLauncher(environment);
  if (!flags.rank.has_value()) return launcher;
  // Half a set in the environment does not matter to someone who says everything by flags.
  if (launcher.ok() && launcher->launched()) {
    RETURN_IF_ERROR(CheckAgainst(flags, *launcher));
    launcher->launcher = Launcher::kFlags;
    return launcher;
  }
  LaunchEnv env;
  env.launcher = Launcher::kFlags;
  env.rank = *flags.rank;
  env.world_size = *flags.world_size;
  env.local_rank = flags.local_rank.value_or(0);
  env.local_size = flags.local_size.value_or(1);
  RETURN_IF_ERROR(CheckRange("flags", env.rank, env.world_size));
  RETURN_IF_ERROR(CheckRange("flags, ranks of this host", env.local_rank, env.local_size));
  return env;
}

int32_t PortOfJob(std::string_view job_id, int32_t base, int32_t span) {
  CHECK(span > 0);
  uint32_t hash = 2166136261u;  // FNV-1a: the same on every host and build
  for (const char c : job_id) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  return base + static_cast<int32_t>(hash % static_cast<uint32_t>(span));
}

}  // namespace polyreme::launch
