// Which rank this process is, read from flags or from what a launcher left in the environment. No libmpi, no MPI_Init.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/base/status.h"

namespace polyreme::launch {

// Looks one variable up; nullopt when it is not set.
using Environment = std::function<std::optional<std::string>(const std::string& name)>;

// The environment of this process. The only place of the project that reads it.
Environment ProcessEnvironment();

enum class Launcher { kNone, kFlags, kTorchrun, kOpenMpi, kPmi, kSlurm };
std::string_view NameOf(Launcher launcher);  // "no launcher", "flags", "torchrun", "mpirun (Open MPI)", ...

// What the command line said. rank and world_size go together; the others are optional beside them.
struct LaunchFlags {
  std::optional<int32_t> rank;
  std::optional<int32_t> world_size;
  std::optional<int32_t> local_rank;
  std::optional<int32_t> local_size;
};

struct LaunchEnv {
  Launcher launcher = Launcher::kNone;
  int32_t rank = 0;
  int32_t world_size = 1;
  int32_t local_rank = 0;          // among the ranks of this host
  int32_t local_size = 1;
  std::string job_id;              // equal on all ranks, different for two jobs of one host; empty if not known
  std::string launch_host;         // an address of the host where rank 0 is or the launcher runs; empty if not known
  std::optional<int32_t> port;     // of the meeting, if the launcher chose one (torchrun)
  std::vector<std::string> nodes;  // in rank order, if the launcher says
  std::string shared_directory;    // of this job on this host, made by the launcher; empty if none

  bool launched() const { return launcher != Launcher::kNone; }
  bool one_host() const { return local_size == world_size; }
  friend bool operator==(const LaunchEnv&, const LaunchEnv&) = default;
};

// Order of trust: flags, torchrun (RANK ...), Open MPI and PMIx (OMPI_COMM_WORLD_RANK ...), PMI (PMI_RANK ...), a Slurm
// step (SLURM_PROCID ...). Variables of Slurm count only inside a step that srun started for us: in an allocation's
// shell, or under mpirun, they speak of something else. kNone: one rank, alone.
// Errors: InvalidArgument names the variables when a set is incomplete, out of range, or contradicts the flags.
absl::StatusOr<LaunchEnv> ReadLaunchEnv(const LaunchFlags& flags, const Environment& environment);

// A port for the job's meeting in [base, base + span), equal on all ranks, so that two jobs of one host do not collide.
int32_t PortOfJob(std::string_view job_id, int32_t base, int32_t span);

// "n[01-04,7],x" -> n01 n02 n03 n04 n7 x. InvalidArgument on anything else; bounded by limits::kMaxRanks names.
absl::StatusOr<std::vector<std::string>> ParseNodeList(std::string_view text);
// "3,1" -> 3 1; "2(x2)" -> 2 2.
absl::StatusOr<std::vector<int32_t>> ParseTasksPerNode(std::string_view text);

}  // namespace polyreme::launch
