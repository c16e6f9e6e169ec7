// Which rank this process is, read from flags or from what a launcher left in the environment. No
// libmpi, no MPI_Init.
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
// "no launcher", "flags", "torchrun", "mpirun (Open MPI)", ...
std::string_view NameOf(Launcher launcher);

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
  int32_t local_rank = 0;  // among the ranks of this host; 0 if not known
  int32_t local_size = 1;  // 1 if not known
  std::string job_id;  // equal on all ranks, different for two jobs of one host; empty if not known
  std::string meeting_host;  // where rank 0 is, if the launcher says so (MASTER_ADDR); else empty
  std::optional<int32_t> meeting_port;  // MASTER_PORT, unless the launcher itself listens there
  std::string launch_host;  // where the launcher itself runs; rank 0 may be elsewhere
  std::vector<std::string> nodes;  // in rank order, the first one is rank 0's; empty if not known
  std::string shared_directory;    // the launcher's, of this job, on this host; empty if none

  bool launched() const { return world_size > 1; }
  bool one_host() const { return local_size == world_size; }
  friend bool operator==(const LaunchEnv&, const LaunchEnv&) = default;
};

// Order of trust: flags, torchrun (RANK ...), Open MPI and PMIx (OMPI_COMM_WORLD_RANK ...), PMI
// (PMI_RANK ...), a Slurm step (SLURM_PROCID ...). Variables of Slurm count only inside a step that
// srun started for us: in an allocation's shell, or under mpirun, they speak of something else.
// Without any: kNone, one rank, alone. A launcher that started one rank contradicts no flags.
// Errors: InvalidArgument names the variables when a set is incomplete, out of range, or
// contradicts the flags.
absl::StatusOr<LaunchEnv> ReadLaunchEnv(const LaunchFlags& flags, const Environment& environment);

// A port for the job's meeting in [base, base + span), equal on all ranks, so that two jobs of one
// host do not collide.
int32_t PortOfJob(std::string_view job_id, int32_t base, int32_t span);

}  // namespace polyreme::launch
