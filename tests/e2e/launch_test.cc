// Starting and ending: what a wrong launch says, and that nothing stays behind.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/e2e/launched_cluster.h"

namespace polyreme::e2e {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kToken[] = "a-token-of-this-test-0123456789";

std::unique_ptr<Program> Serve(const std::vector<std::string>& arguments,
                               const Program::Environment& environment = {},
                               const std::string& model = kDemoModel) {
  std::vector<std::string> line = {POLYREME_BINARY, "serve", model, "--port", "0"};
  line.insert(line.end(), arguments.begin(), arguments.end());
  return Program::Start(line, environment);
}

// One rank started by hand, as a launcher across hosts would.
std::unique_ptr<Program> ServeRank(int rank, int world, int32_t port,
                                   std::vector<std::string> more = {},
                                   const std::string& token = kToken) {
  std::vector<std::string> arguments = {
      "-tp",          std::to_string(world), "--rank",        std::to_string(rank),
      "--world-size", std::to_string(world), "--coordinator", fmt::format("127.0.0.1:{}", port)};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return Serve(arguments, {{"POLYREME_JOB_TOKEN", token}});
}

void ExpectEnds(Program& program, int code, const std::string& text, absl::Duration patience) {
  const std::optional<int> exit = program.WaitForExit(patience);
  ASSERT_TRUE(exit.has_value()) << "still running; it said:\n" << program.output();
  EXPECT_EQ(*exit, code) << program.output();
  EXPECT_THAT(program.output(), HasSubstr(text));
}

TEST(Launch, UnknownFlagSaysWhichAndWhatWasMeant) {
  ExpectEnds(*Serve({"--tensor-paralel-size", "2"}), 2,
             "unknown flag --tensor-paralel-size; did you mean --tensor-parallel-size?",
             absl::Seconds(10));
}

TEST(Launch, FlagsThatContradictEachOtherAreNamed) {
  ExpectEnds(*Serve({"-tp", "2", "--tensor-parallel-size", "4"}), 2,
             "--tensor-parallel-size is given twice, as '2' and as '4'", absl::Seconds(10));
  ExpectEnds(*Serve({"--host", "0.0.0.0"}), 2, "give --api-key", absl::Seconds(10));
}

TEST(Launch, LauncherWithAnotherNumberOfRanksIsRefused) {
  std::vector<std::string> line = Mpirun(2);
  line.insert(line.end(), {POLYREME_BINARY, "serve", kDemoModel, "-tp", "4"});
  const auto program = Program::Start(line);
  const std::optional<int> exit = program->WaitForExit(absl::Seconds(20));
  ASSERT_TRUE(exit.has_value());
  EXPECT_NE(*exit, 0);
  EXPECT_THAT(program->output(), HasSubstr("started 2 ranks, but --tensor-parallel-size 4"));
}

TEST(Launch, HelpNamesTheFlagsOfTheField) {
  const auto program = Serve({"--help"});
  EXPECT_EQ(program->WaitForExit(absl::Seconds(10)), 0);
  for (const char* flag :
       {"--tensor-parallel-size, -tp", "--pipeline-parallel-size, -pp", "--max-model-len",
        "--max-num-seqs", "--max-num-batched-tokens", "--served-model-name"}) {
    EXPECT_THAT(program->output(), HasSubstr(flag));
  }
}

TEST(Launch, MissingModelIsOneClearSentence) {
  const auto program = Serve({}, {}, "/nonexistent/model");
  const std::optional<int> exit = program->WaitForExit(absl::Seconds(20));
  ASSERT_TRUE(exit.has_value()) << program->output();
  EXPECT_NE(*exit, 0);
  EXPECT_THAT(program->output(), HasSubstr("/nonexistent/model"));
}

TEST(Launch, LayoutThatTheModelCannotTakeIsRefusedBeforeAnyRankStarts) {
  const auto program = Serve({"-tp", "3"});
  ExpectEnds(*program, 2, "8 query heads cannot be split over 3 shards", absl::Seconds(10));
  EXPECT_THAT(program->output(), Not(HasSubstr("[worker")));
  ExpectEnds(*Serve({"-pp", "2", "--pipeline-layers", "3,4"}), 2, "expected 8 layers in all, got 7",
             absl::Seconds(10));
}

TEST(Launch, CoordinatorThatCannotStartEndsWaitingWorkersAtOnce) {
  // Less than the agent's patience with what does not end by itself.
  const auto program = Serve({"-tp", "2", "--chat-template", "/nonexistent.jinja"});
  ExpectEnds(*program, 1, "/nonexistent.jinja: no such chat template", absl::Seconds(4));
  EXPECT_THAT(program->output(), HasSubstr("polyreme serve: coordinator (pid"));
  EXPECT_THAT(program->output(), Not(HasSubstr("[worker")));
}

TEST(Launch, FewBlocksBoundTheContext) {
  Cluster cluster = StartCluster({}, {"--num-blocks", "8"});
  ASSERT_NE(cluster.port, 0);
  EXPECT_THAT(cluster.Get("/v1/models"), HasSubstr("\"max_model_len\":128"));
  ExpectEnds(*Serve({"--num-blocks", "8", "--max-model-len", "129"}), 2,
             "--max-model-len 129 is more than the 128 tokens", absl::Seconds(10));
}

TEST(Launch, MissingRankIsNamedWithinTheJoinTimeout) {
  const int32_t port = FreePort();
  ExpectEnds(*ServeRank(0, 2, port, {"--join-timeout", "3"}), 1, "rank 1", absl::Seconds(20));
}

TEST(Launch, RankWithOtherSettingsIsNamed) {
  const int32_t port = FreePort();
  const auto first = ServeRank(0, 2, port, {"--max-model-len", "1024"});
  const auto second = ServeRank(1, 2, port, {"--max-model-len", "2048"});
  ExpectEnds(*second, 1, "max_model_len=2048", absl::Seconds(10));
  ExpectEnds(*first, 1, "rank 1 on host", absl::Seconds(10));
}

TEST(Launch, DuplicateRankIsNamed) {
  const int32_t port = FreePort();
  const auto first = ServeRank(0, 4, port);
  const auto second = ServeRank(1, 4, port);
  const auto third = ServeRank(1, 4, port);
  ExpectEnds(*first, 1, "rank 1 is already on host", absl::Seconds(15));
  EXPECT_TRUE(second->WaitForExit(absl::Seconds(15)).has_value());
  EXPECT_TRUE(third->WaitForExit(absl::Seconds(15)).has_value());
}

TEST(Launch, AnotherTokenIsRefused) {
  const int32_t port = FreePort();
  const auto first = ServeRank(0, 2, port, {"--join-timeout", "5"});
  const auto second = ServeRank(1, 2, port, {}, "quite-another-token-9876543210");
  ExpectEnds(*second, 1, "token", absl::Seconds(10));
  EXPECT_TRUE(first->WaitForExit(absl::Seconds(20)).has_value());
}

TEST(Launch, AnotherCheckpointOnOneRankIsNamed) {
  const std::filesystem::path copy =
      std::filesystem::temp_directory_path() / fmt::format("polyreme-copy-{}", getpid());
  std::filesystem::remove_all(copy);
  std::filesystem::copy(kDemoModel, copy);
  {
    std::fstream file(copy / "model-00002-of-00003.safetensors",
                      std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-1, std::ios::end);
    file.put('\x7f');
  }
  const int32_t port = FreePort();
  const auto first = ServeRank(0, 2, port);
  const auto second = Serve({"-tp", "2", "--rank", "1", "--world-size", "2", "--coordinator",
                             fmt::format("127.0.0.1:{}", port)},
                            {{"POLYREME_JOB_TOKEN", kToken}}, copy.string());
  ExpectEnds(*second, 1, "sees another checkpoint", absl::Seconds(10));
  ExpectEnds(*first, 1, "rank 1 on host", absl::Seconds(10));
  std::filesystem::remove_all(copy);
}

// Without restarts: recovery_test has them.
TEST(Launch, KilledWorkerEndsTheWholeNamedAndLeavesNothing) {
  Cluster cluster = StartCluster({}, {"-tp", "2", "-pp", "2", "--max-restarts", "0"});
  ASSERT_NE(cluster.port, 0);
  const std::vector<pid_t> family = cluster.program->Descendants("polyreme");
  ASSERT_EQ(family.size(), 5u);
  const std::vector<pid_t> victims = cluster.program->Descendants("polyreme worker");
  ASSERT_EQ(victims.size(), 4u);
  ASSERT_EQ(kill(victims[2], SIGKILL), 0);
  ExpectEnds(*cluster.program, 1, "was killed by signal 9", absl::Seconds(15));
  EXPECT_THAT(cluster.program->output(), HasSubstr(fmt::format("(pid {})", victims[2])));
  EXPECT_EQ(FirstAlive(family, absl::Seconds(5)), std::nullopt);
}

TEST(Launch, KilledAgentTakesItsChildrenWithIt) {
  Cluster cluster = StartCluster({}, {"-tp", "2"});
  ASSERT_NE(cluster.port, 0);
  const std::vector<pid_t> family = cluster.program->Descendants("polyreme");
  cluster.program->Signal(SIGKILL);
  ASSERT_TRUE(cluster.program->WaitForExit(absl::Seconds(5)).has_value());
  EXPECT_EQ(FirstAlive(family, absl::Seconds(5)), std::nullopt);
}

TEST(Launch, KilledWorkerUnderMpirunEndsTheJob) {
  Cluster cluster = StartCluster(Mpirun(2), {"-tp", "2", "--max-restarts", "0"});
  ASSERT_NE(cluster.port, 0);
  const std::vector<pid_t> family = cluster.program->Descendants("polyreme");
  const std::vector<pid_t> workers = cluster.program->Descendants("polyreme worker");
  ASSERT_EQ(workers.size(), 2u);
  ASSERT_EQ(kill(workers[1], SIGKILL), 0);
  const std::optional<int> exit = cluster.program->WaitForExit(absl::Seconds(20));
  ASSERT_TRUE(exit.has_value()) << cluster.program->output();
  EXPECT_NE(*exit, 0);
  EXPECT_THAT(cluster.program->output(), HasSubstr("was killed by signal 9"));
  EXPECT_EQ(FirstAlive(family, absl::Seconds(5)), std::nullopt);
}

TEST(Launch, KilledMpirunLeavesNothing) {
  Cluster cluster = StartCluster(Mpirun(2), {"-tp", "2"});
  ASSERT_NE(cluster.port, 0);
  const std::vector<pid_t> family = cluster.program->Descendants("polyreme");
  EXPECT_EQ(family.size(), 5u);
  cluster.program->Signal(SIGKILL);
  ASSERT_TRUE(cluster.program->WaitForExit(absl::Seconds(5)).has_value());
  EXPECT_EQ(FirstAlive(family, absl::Seconds(5)), std::nullopt);
}

// As serve.sh does it, and the one that some mpiruns keep to themselves.
TEST(Launch, MpirunHandsOnTheWishToEnd) {
  for (const int signal : {SIGUSR2, SIGUSR1}) {
    Cluster cluster = StartCluster(Mpirun(2), {"-tp", "2"});
    ASSERT_NE(cluster.port, 0);
    cluster.program->Signal(signal);
    EXPECT_EQ(cluster.program->WaitForExit(absl::Seconds(20)), 0) << cluster.program->output();
    EXPECT_THAT(cluster.program->output(), HasSubstr("stopping: no new requests"));
  }
}

TEST(Launch, TorchrunsVariablesAreALaunch) {
  const auto rank = [](const std::string& local_size, const Program::Environment& more) {
    return [=, port = std::to_string(FreePort())](const std::string& r) {
      Program::Environment environment = {{"RANK", r},
                                          {"WORLD_SIZE", "2"},
                                          {"LOCAL_RANK", local_size == "2" ? r : "0"},
                                          {"LOCAL_WORLD_SIZE", local_size},
                                          {"MASTER_ADDR", "127.0.0.1"},
                                          {"MASTER_PORT", port}};
      environment.insert(environment.end(), more.begin(), more.end());
      return Serve({"-tp", "2"}, environment);
    };
  };
  // Both on one host, then one on each of two.
  for (const auto& start : {rank("2", {}), rank("1", {{"POLYREME_JOB_TOKEN", kToken}})}) {
    const auto first = start("0");
    const auto second = start("1");
    EXPECT_TRUE(first->WaitForLine("at http://127.0.0.1:", absl::Seconds(30)).has_value())
        << first->output() << second->output();
    first->Signal(SIGTERM);
    EXPECT_EQ(first->WaitForExit(absl::Seconds(20)), 0) << first->output();
    EXPECT_EQ(second->WaitForExit(absl::Seconds(20)), 0) << second->output();
  }
}

TEST(Launch, TwoHostsTalkOverTcpAndRefuseSharedMemory) {
  // Two identities on one machine stand for two hosts: 127.0.0.2 and 127.0.0.3.
  const auto start = [](const std::string& transport) {
    const int32_t port = FreePort();
    const auto rank = [&](int r) {
      return ServeRank(
          r, 2, port,
          {"--transport", transport, "--listen-address", fmt::format("127.0.0.{}", r + 2),
           "--host-identity", fmt::format("host-{}", r)});
    };
    return std::pair(rank(0), rank(1));
  };
  {
    const auto [first, second] = start("auto");
    const auto port = first->WaitForLine("at http://127.0.0.1:", absl::Seconds(30));
    ASSERT_TRUE(port.has_value()) << first->output() << second->output();
    Cluster cluster{nullptr, std::stoi(*port)};
    EXPECT_THAT(cluster.Get("/health"), HasSubstr(""));
    first->Signal(SIGTERM);
    EXPECT_EQ(first->WaitForExit(absl::Seconds(20)), 0) << first->output();
    EXPECT_EQ(second->WaitForExit(absl::Seconds(20)), 0) << second->output();
  }
  {
    const auto [first, second] = start("shm");
    ExpectEnds(*first, 1, "cannot share memory", absl::Seconds(20));
    EXPECT_TRUE(second->WaitForExit(absl::Seconds(20)).has_value());
  }
}

TEST(Launch, ApiKeysDoNotStandOnTheChildrensCommandLines) {
  Cluster cluster = StartCluster({}, {"--api-key", "a-key-nobody-sees"});
  ASSERT_NE(cluster.port, 0);
  EXPECT_THAT(cluster.program->Descendants("a-key-nobody-sees"), testing::IsEmpty());
  EXPECT_THAT(cluster.Get("/v1/models", 401), HasSubstr("error"));
  EXPECT_EQ(cluster.Stop(), 0);
}

TEST(Launch, SecondSignalStopsAtOnce) {
  Cluster cluster = StartCluster({}, {"-tp", "2", "--shutdown-timeout", "60"});
  ASSERT_NE(cluster.port, 0);
  const std::vector<pid_t> family = cluster.program->Descendants("polyreme");
  // A worker that stands still keeps the drain from ending.
  ASSERT_EQ(kill(cluster.program->Descendants("polyreme worker")[0], SIGSTOP), 0);
  cluster.program->Signal(SIGTERM);
  EXPECT_EQ(cluster.program->WaitForExit(absl::Seconds(1)), std::nullopt);
  cluster.program->Signal(SIGTERM);
  ASSERT_TRUE(cluster.program->WaitForExit(absl::Seconds(5)).has_value());
  EXPECT_EQ(FirstAlive(family, absl::Seconds(5)), std::nullopt);
}

TEST(Launch, SecondClusterOnAPortSaysThatItIsTaken) {
  Cluster cluster = StartCluster({}, {});
  ASSERT_NE(cluster.port, 0);
  const auto second = Program::Start(
      {POLYREME_BINARY, "serve", kDemoModel, "--port", std::to_string(cluster.port)});
  ExpectEnds(*second, 1, std::to_string(cluster.port), absl::Seconds(20));
}

}  // namespace
}  // namespace polyreme::e2e
