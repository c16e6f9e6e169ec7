// The real binary as Slurm tasks, in a Slurm of this machine's own (scripts/slurm_sandbox.sh).

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/e2e/launched_cluster.h"

namespace polyreme::e2e {
namespace {

using ::testing::HasSubstr;

constexpr char kSandboxScript[] = POLYREME_SOURCE_DIR "/scripts/slurm_sandbox.sh";
constexpr char kBatchScript[] = POLYREME_SOURCE_DIR "/deploy/slurm/polyreme.sbatch";
constexpr char kToken[] = "a-token-of-this-test-0123456789";
constexpr int kNotInstalled = 3;  // the sandbox script's exit code

// Two nodes of four CPUs in a directory with a short name, as it holds sockets.
class Sandbox {
 public:
  Sandbox() {
    EXPECT_NE(mkdtemp(directory_.data()), nullptr);
    const auto script = Program::Start({kSandboxScript, "start", directory_, "2", "4"});
    exit_ = script->WaitForExit(absl::Seconds(30)).value_or(-1);
  }
  ~Sandbox() {
    const auto script = Program::Start({kSandboxScript, "stop", directory_});
    EXPECT_EQ(script->WaitForExit(absl::Seconds(30)), 0) << script->output();
    std::filesystem::remove_all(directory_);
  }

  int exit() const { return exit_; }
  const std::string& directory() const { return directory_; }
  // A command line that speaks to this Slurm.
  std::vector<std::string> Line(const std::vector<std::string>& command) const {
    std::vector<std::string> line = {"env", "SLURM_CONF=" + directory_ + "/slurm.conf"};
    line.insert(line.end(), command.begin(), command.end());
    return line;
  }
  // Runs a Slurm command to its end; it must succeed.
  void Run(const std::vector<std::string>& command) const {
    const auto program = Program::Start(Line(command));
    EXPECT_EQ(program->WaitForExit(absl::Seconds(20)), 0) << program->output();
  }

 private:
  std::string directory_ = "/tmp/slurm-XXXXXX";
  int exit_ = -1;
};

// Text, tokens and log-probabilities of a greedy completion.
std::string GreedyAnswer(const Cluster& cluster, const std::string& model) {
  const Json answer =
      cluster.Post("/v1/completions", Json::MakeObject({{"model", model},
                                                        {"prompt", "def add(a, b):"},
                                                        {"max_tokens", 24},
                                                        {"temperature", 0},
                                                        {"logprobs", 1},
                                                        {"return_token_ids", true}}));
  const Json* choices = answer.Find("choices");
  return choices == nullptr ? "" : choices->Dump();
}

class Slurm : public testing::Test {
 protected:
  static void SetUpTestSuite() { sandbox_ = new Sandbox(); }
  static void TearDownTestSuite() { delete sandbox_; }
  void SetUp() override {
    if (sandbox_->exit() == kNotInstalled) {
      GTEST_SKIP() << "Slurm is not installed (scripts/install_packages.sh --test), or nothing is "
                      "mounted at /sys/fs/cgroup";
    }
    ASSERT_EQ(sandbox_->exit(), 0) << "Slurm did not start";
  }

  // The same completion from a run alone.
  static const std::string& AnswerAlone() {
    static const std::string answer = [] {
      Cluster alone = StartCluster({}, {});
      std::string text = GreedyAnswer(alone, "demo-model");
      EXPECT_EQ(alone.Stop(), 0) << alone.program->output();
      return text;
    }();
    return answer;
  }

  // Every rank's command line carries this name, which nobody else's does.
  const std::string name_ = fmt::format("slurm-test-{}", getpid());
  static Sandbox* sandbox_;
};
Sandbox* Slurm::sandbox_ = nullptr;

TEST_F(Slurm, FourTasksOfOneNodeAnswerAsOneProcessDoesAndDrainOnTerm) {
  const std::string want = AnswerAlone();
  Cluster cluster =
      StartCluster(sandbox_->Line({"srun", "-N", "1", "-n", "4", "--job-name", name_}),
                   {"-tp", "2", "-pp", "2", "--served-model-name", name_});
  ASSERT_NE(cluster.port, 0);
  EXPECT_EQ(GreedyAnswer(cluster, name_), want);
  const std::vector<pid_t> family = ProcessesWith(name_);
  EXPECT_GE(family.size(), 9u) << "four agents, four workers, a coordinator";
  sandbox_->Run({"scancel", "--signal=TERM", "--name=" + name_});
  EXPECT_EQ(cluster.program->WaitForExit(absl::Seconds(20)), 0) << cluster.program->output();
  EXPECT_EQ(FirstAlive(family, absl::Seconds(10)), std::nullopt);
}

TEST_F(Slurm, TasksOnTwoNodesWithoutATokenAreRefused) {
  const auto program = Program::Start(sandbox_->Line(
      {"srun", "-N", "2", "-n", "2", POLYREME_BINARY, "serve", kDemoModel, "-tp", "2", "--port",
       "0", "--coordinator", fmt::format("127.0.0.1:{}", FreePort())}));
  EXPECT_EQ(program->WaitForExit(absl::Seconds(20)), 2);
  EXPECT_THAT(program->output(), HasSubstr("set POLYREME_JOB_TOKEN"));
}

TEST_F(Slurm, NodeNamesThatDoNotResolveAskForTheCoordinatorsAddress) {
  const auto program =
      Program::Start(sandbox_->Line({"srun", "-N", "2", "-n", "2", POLYREME_BINARY, "serve",
                                     kDemoModel, "-tp", "2", "--port", "0"}),
                     {{"POLYREME_JOB_TOKEN", kToken}});
  EXPECT_EQ(program->WaitForExit(absl::Seconds(20)), 2);
  EXPECT_THAT(program->output(), HasSubstr("rank 0 is on n1"));
  EXPECT_THAT(program->output(), HasSubstr("give --coordinator HOST:PORT"));
}

TEST_F(Slurm, TerminatedSrunLeavesNothingRunning) {
  Cluster cluster = StartCluster(sandbox_->Line({"srun", "-n", "2", "--job-name", name_}),
                                 {"-tp", "2", "--served-model-name", name_});
  ASSERT_NE(cluster.port, 0);
  const std::vector<pid_t> family = ProcessesWith(name_);
  cluster.program->Signal(SIGTERM);
  ASSERT_TRUE(cluster.program->WaitForExit(absl::Seconds(20)).has_value());
  EXPECT_EQ(FirstAlive(family, absl::Seconds(10)), std::nullopt);
}

TEST_F(Slurm, TheBatchScriptServesOnTwoNodesAndScancelEndsIt) {
  const std::string log = sandbox_->directory() + "/job.log";
  sandbox_->Run({"env",      fmt::format("POLYREME={}", POLYREME_BINARY),
                 "sbatch",   "-N",
                 "2",        "-n",
                 "2",        "--job-name",
                 name_,      "--output",
                 log,        kBatchScript,
                 kDemoModel, "-tp",
                 "2",        "--port",
                 "0",        "--transport",
                 "tcp",      "--served-model-name",
                 name_});
  Cluster cluster;
  cluster.program = Program::Start({"tail", "-n", "+1", "-F", log});
  const auto port = cluster.program->WaitForLine("at http://127.0.0.1:", absl::Seconds(60));
  ASSERT_TRUE(port.has_value()) << cluster.program->output();
  cluster.port = std::stoi(*port);
  EXPECT_EQ(GreedyAnswer(cluster, name_), AnswerAlone());
  const std::vector<pid_t> family = ProcessesWith(name_);
  EXPECT_GE(family.size(), 5u) << "two agents, two workers, a coordinator";
  sandbox_->Run({"scancel", "--name=" + name_});
  EXPECT_EQ(FirstAlive(family, absl::Seconds(20)), std::nullopt);
}

}  // namespace
}  // namespace polyreme::e2e
