#include "parallel/launch/launch_env.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace polyreme::launch {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using Variables = std::map<std::string, std::string>;

Environment From(Variables variables) {
  return [variables = std::move(variables)](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    if (found == variables.end()) return std::nullopt;
    return found->second;
  };
}
LaunchEnv Read(Variables variables, const LaunchFlags& flags = {}) {
  const absl::StatusOr<LaunchEnv> env = ReadLaunchEnv(flags, From(std::move(variables)));
  EXPECT_TRUE(env.ok()) << env.status().ToString();
  return env.value_or(LaunchEnv{});
}
std::string Refusal(Variables variables, const LaunchFlags& flags = {}) {
  const absl::StatusOr<LaunchEnv> env = ReadLaunchEnv(flags, From(std::move(variables)));
  EXPECT_TRUE(absl::IsInvalidArgument(env.status())) << env.status().ToString();
  return Message(env.status());
}
LaunchFlags Flags(int32_t rank, int32_t world_size) {
  LaunchFlags flags;
  flags.rank = rank;
  flags.world_size = world_size;
  return flags;
}

// As Open MPI 4.1 sets them for the second of four ranks on two hosts.
Variables OpenMpi() {
  return {
      {"OMPI_COMM_WORLD_RANK", "1"},
      {"OMPI_COMM_WORLD_SIZE", "4"},
      {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
      {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
      {"OMPI_MCA_ess_base_jobid", "1997209601"},
      {"OMPI_MCA_orte_hnp_uri", "1997209600.0;tcp://127.0.0.2,10.1.2.3:53209;tcp6://[::1]:40965"},
      {"OMPI_MCA_orte_jobfam_session_dir", "/tmp/ompi.host.0/pid.7157"},
      {"PMIX_NAMESPACE", "1997209601"},
      {"PMIX_RANK", "1"}};
}
// As srun sets them for task 2 of a step of four over two nodes, three and one.
Variables SlurmStep() {
  return {{"SLURM_JOB_ID", "31"},
          {"SLURM_STEP_ID", "0"},
          {"SLURM_PROCID", "2"},
          {"SLURM_NTASKS", "4"},
          {"SLURM_STEP_NUM_TASKS", "4"},
          {"SLURM_LOCALID", "2"},
          {"SLURM_NODEID", "0"},
          {"SLURM_STEP_NODELIST", "n[1-2]"},
          {"SLURM_STEP_TASKS_PER_NODE", "3,1"},
          {"SLURM_LAUNCH_NODE_IPADDR", "127.0.0.9"}};
}
// As sbatch sets them in the batch script: an allocation, no step of ours.
Variables SlurmAllocation() {
  return {{"SLURM_JOB_ID", "31"},      {"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"},
          {"SLURM_LOCALID", "0"},      {"SLURM_NODEID", "0"}, {"SLURM_TASKS_PER_NODE", "4"},
          {"SLURM_JOB_NODELIST", "n1"}};
}
Variables Torchrun() {
  return {{"RANK", "3"},
          {"WORLD_SIZE", "4"},
          {"LOCAL_RANK", "1"},
          {"LOCAL_WORLD_SIZE", "2"},
          {"MASTER_ADDR", "127.0.0.4"},
          {"MASTER_PORT", "29500"},
          {"TORCHELASTIC_RUN_ID", "none"}};
}
Variables With(Variables base, const Variables& more) {
  for (const auto& [name, value] : more) base[name] = value;
  return base;
}
Variables Without(Variables base, const std::string& name) {
  base.erase(name);
  return base;
}

TEST(LaunchEnv, WithoutALauncherThereIsOneRankAlone) {
  const LaunchEnv env = Read({{"PATH", "/bin"}});
  EXPECT_EQ(env, LaunchEnv{});
  EXPECT_FALSE(env.launched());
  EXPECT_TRUE(env.one_host());
}

TEST(LaunchEnv, ReadsOpenMpi) {
  const LaunchEnv env = Read(OpenMpi());
  EXPECT_EQ(env.launcher, Launcher::kOpenMpi);
  EXPECT_EQ(env.rank, 1);
  EXPECT_EQ(env.world_size, 4);
  EXPECT_EQ(env.local_rank, 1);
  EXPECT_EQ(env.local_size, 2);
  EXPECT_FALSE(env.one_host());
  EXPECT_EQ(env.job_id, "ompi-1997209601");
  EXPECT_EQ(env.launch_host, "127.0.0.2");
  EXPECT_EQ(env.shared_directory, "/tmp/ompi.host.0/pid.7157");
}

TEST(LaunchEnv, ReadsASlurmStep) {
  const LaunchEnv env = Read(SlurmStep());
  EXPECT_EQ(env.launcher, Launcher::kSlurm);
  EXPECT_EQ(env.rank, 2);
  EXPECT_EQ(env.world_size, 4);
  EXPECT_EQ(env.local_rank, 2);
  EXPECT_EQ(env.local_size, 3);
  EXPECT_EQ(env.job_id, "slurm-31.0");
  EXPECT_EQ(env.launch_host, "127.0.0.9");
  EXPECT_THAT(env.nodes, ElementsAre("n1", "n2"));
}

TEST(LaunchEnv, ReadsTorchrun) {
  const LaunchEnv env = Read(Torchrun());
  EXPECT_EQ(env.launcher, Launcher::kTorchrun);
  EXPECT_EQ(env.rank, 3);
  EXPECT_EQ(env.meeting_host, "127.0.0.4");
  EXPECT_EQ(env.meeting_port, 29500);
  EXPECT_EQ(env.job_id, "torchrun-29500");
}

TEST(LaunchEnv, ATorchrunJobHasANameWithoutARunId) {
  EXPECT_EQ(Read(Without(Torchrun(), "TORCHELASTIC_RUN_ID")).job_id, "torchrun-29500");
  EXPECT_EQ(Read(With(Torchrun(), {{"TORCHELASTIC_RUN_ID", "x7"}})).job_id, "torchrun-x7");
}

TEST(LaunchEnv, APortOnWhichTorchrunListensIsNotOurs) {
  const LaunchEnv env = Read(With(Torchrun(), {{"TORCHELASTIC_USE_AGENT_STORE", "True"}}));
  EXPECT_EQ(env.meeting_port, std::nullopt);
  EXPECT_EQ(env.meeting_host, "127.0.0.4");
}

TEST(LaunchEnv, ReadsPmiInBothSpellings) {
  const Variables hydra = {
      {"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}};
  const Variables cray = {
      {"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"PMI_LOCAL_RANK", "1"}, {"PMI_LOCAL_SIZE", "2"}};
  for (const Variables& variables : {hydra, cray}) {
    const LaunchEnv env = Read(variables);
    EXPECT_EQ(env.launcher, Launcher::kPmi);
    EXPECT_EQ(env.local_rank, 1);
    EXPECT_TRUE(env.one_host());
  }
  EXPECT_THAT(Refusal(With(hydra, {{"PMI_LOCAL_RANK", "0"}})),
              AllOf(HasSubstr("MPI_LOCALRANKID=1"), HasSubstr("PMI_LOCAL_RANK=0")));
}

TEST(LaunchEnv, AnAllocationsShellIsNoLauncher) {
  EXPECT_EQ(Read(SlurmAllocation()).launcher, Launcher::kNone);
}

TEST(LaunchEnv, MpirunInsideSlurmWinsWithoutAQuarrel) {
  // orted runs in a Slurm step of its own, whose numbers are not ours.
  const LaunchEnv env = Read(With(SlurmStep(), OpenMpi()));
  EXPECT_EQ(env.launcher, Launcher::kOpenMpi);
  EXPECT_EQ(env.rank, 1);
}

TEST(LaunchEnv, TwoNamesOfOneLevelMustAgree) {
  EXPECT_THAT(Refusal(With(OpenMpi(), {{"PMIX_RANK", "2"}})),
              AllOf(HasSubstr("PMIX_RANK=2"), HasSubstr("OMPI_COMM_WORLD_RANK=1")));
}

TEST(LaunchEnv, HalfASetIsRefusedByName) {
  EXPECT_THAT(
      Refusal(Without(OpenMpi(), "OMPI_COMM_WORLD_SIZE")),
      AllOf(HasSubstr("OMPI_COMM_WORLD_RANK is set"), HasSubstr("OMPI_COMM_WORLD_SIZE is not")));
  EXPECT_THAT(Refusal({{"WORLD_SIZE", "4"}}),
              AllOf(HasSubstr("WORLD_SIZE is set"), HasSubstr("RANK is not")));
  EXPECT_THAT(Refusal({{"PMIX_RANK", "0"}}), HasSubstr("PMIX_RANK"));
}

TEST(LaunchEnv, NonsenseIsRefusedByNameAndValue) {
  EXPECT_THAT(Refusal(With(OpenMpi(), {{"OMPI_COMM_WORLD_RANK", "one"}})),
              AllOf(HasSubstr("OMPI_COMM_WORLD_RANK"), HasSubstr("'one'")));
  EXPECT_THAT(Refusal(With(OpenMpi(), {{"OMPI_COMM_WORLD_RANK", "-1"}})), HasSubstr("'-1'"));
  EXPECT_THAT(Refusal(With(OpenMpi(), {{"OMPI_COMM_WORLD_RANK", "4"}})), HasSubstr("[0, 4)"));
  EXPECT_THAT(Refusal(With(OpenMpi(), {{"OMPI_COMM_WORLD_SIZE", "0"}})), HasSubstr("got 0"));
  EXPECT_THAT(Refusal(With(OpenMpi(), {{"OMPI_COMM_WORLD_SIZE", "1000000"}})), HasSubstr("256"));
  EXPECT_THAT(Refusal(With(OpenMpi(), {{"OMPI_COMM_WORLD_LOCAL_RANK", "2"}})), HasSubstr("[0, 2)"));
  EXPECT_THAT(Refusal(With(SlurmStep(), {{"SLURM_NODEID", "5"}})), HasSubstr("SLURM_NODEID=5"));
  EXPECT_THAT(Refusal(With(SlurmStep(), {{"SLURM_STEP_NODELIST", "n[1-"}})),
              HasSubstr("SLURM_STEP_NODELIST"));
}

TEST(LaunchEnv, FlagsSayWhoWeAreWithoutALauncher) {
  const LaunchEnv env = Read({}, Flags(2, 3));
  EXPECT_EQ(env.launcher, Launcher::kFlags);
  EXPECT_EQ(env.rank, 2);
  EXPECT_EQ(env.world_size, 3);
  EXPECT_EQ(Read({{"WORLD_SIZE", "8"}}, Flags(2, 3)).world_size, 3);
}

TEST(LaunchEnv, FlagsThatAgreeWithTheLauncherKeepItsDetails) {
  const LaunchEnv env = Read(OpenMpi(), Flags(1, 4));
  EXPECT_EQ(env.launcher, Launcher::kFlags);
  EXPECT_EQ(env.local_size, 2);
  EXPECT_EQ(env.job_id, "ompi-1997209601");
}

TEST(LaunchEnv, FlagsThatContradictTheLauncherAreRefused) {
  EXPECT_THAT(Refusal(OpenMpi(), Flags(2, 4)),
              AllOf(HasSubstr("rank 2"), HasSubstr("Open MPI"), HasSubstr("says 1")));
  EXPECT_THAT(Refusal(SlurmStep(), Flags(2, 8)),
              AllOf(HasSubstr("world size 8"), HasSubstr("srun")));
}

TEST(LaunchEnv, HalfASetOfFlagsIsRefused) {
  LaunchFlags flags;
  flags.rank = 1;
  EXPECT_THAT(Refusal({}, flags), HasSubstr("no world size"));
  flags = {};
  flags.local_rank = 0;
  flags.local_size = 1;
  EXPECT_THAT(Refusal({}, flags), HasSubstr("local rank"));
  EXPECT_THAT(Refusal({}, Flags(3, 3)), HasSubstr("[0, 3)"));
}

TEST(LaunchEnv, PortsOfTwoJobsDifferAndAreEqualOnAllRanks) {
  const int32_t port = PortOfJob("slurm-31.0", 20000, 10000);
  EXPECT_EQ(port, PortOfJob("slurm-31.0", 20000, 10000));
  EXPECT_NE(port, PortOfJob("slurm-32.0", 20000, 10000));
  EXPECT_GE(port, 20000);
  EXPECT_LT(port, 30000);
}

TEST(LaunchEnv, TheRealEnvironmentIsRead) {
  EXPECT_TRUE(ProcessEnvironment()("PATH").has_value());
  EXPECT_FALSE(ProcessEnvironment()("POLYREME_NO_SUCH_VARIABLE").has_value());
}

}  // namespace
}  // namespace polyreme::launch
