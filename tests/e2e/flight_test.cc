// The flight recorder on real processes: whoever is stopped or killed in mid-stream is named by the
// records that are left, and a launch without failures leaves none.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/coordinator/api/raw_client.h"
#include "tests/e2e/launched_cluster.h"

namespace polyreme::e2e {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// A directory of its own for each test.
class Flight : public ::testing::Test {
 protected:
  Flight() {
    std::string pattern = fs::temp_directory_path() / "flight-XXXXXX";
    EXPECT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  ~Flight() override { fs::remove_all(directory_); }

  // Names of the records of an epoch, without the launch.
  std::vector<std::string> Records() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(directory_)) {
      const std::string name = entry.path().filename();
      names.push_back(name.substr(std::min(name.find("epoch"), name.size())));
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  std::string Trace() const {
    const std::unique_ptr<Program> trace = Program::Start({POLYREME_BINARY, "trace", directory_});
    EXPECT_EQ(trace->WaitForExit(absl::Seconds(20)), 0) << trace->output();
    return trace->output();
  }

  Cluster Start(std::vector<std::string> arguments) const {
    arguments.insert(arguments.end(), {"--flight-recorder-dir", directory_});
    return StartCluster({}, arguments);
  }

  std::string directory_;
};

pid_t WorkerOf(const Cluster& cluster, int rank) {
  for (const pid_t pid : cluster.program->Descendants("polyreme worker")) {
    const std::vector<pid_t> of_rank =
        cluster.program->Descendants(fmt::format("--rank {} --world-size", rank));
    if (std::find(of_rank.begin(), of_rank.end(), pid) != of_rank.end()) return pid;
  }
  ADD_FAILURE() << "no worker of rank " << rank << "\n" << cluster.program->output();
  return -1;
}

// Sends `signal` to the worker in the middle of a stream, which ends all the same.
void DisturbAStream(const Cluster& cluster, int rank, int signal) {
  api::RawClient client(cluster.port);
  client.Send(api::PostJson("/v1/completions",
                            R"({"prompt":"def f(","max_tokens":400,"ignore_eos":true,)"
                            R"("temperature":0,"stream":true})"));
  client.ReadUntil("data: ");
  const pid_t pid = WorkerOf(cluster, rank);
  ASSERT_GT(pid, 1);
  ASSERT_EQ(kill(pid, signal), 0);
  ASSERT_TRUE(cluster.program->WaitForLine("epoch 2 serves", absl::Seconds(60)).has_value())
      << cluster.program->output();
  EXPECT_THAT(client.ReadUntil("data: [DONE]"), HasSubstr("data: [DONE]"));
}

TEST_F(Flight, NamesTheRankThatStoodStill) {
  Cluster cluster = Start({"-tp", "2"});
  ASSERT_NE(cluster.port, 0);
  DisturbAStream(cluster, 1, SIGSTOP);
  EXPECT_THAT(Records(), testing::IsSupersetOf({"epoch-1-rank-0.flight", "epoch-1-rank-1.flight"}));
  const std::string story = Trace();
  EXPECT_THAT(story, HasSubstr("verdict: rank 1 fell behind"));
  EXPECT_THAT(story, HasSubstr("all-reduce #"));
  EXPECT_THAT(story, HasSubstr("saved by its successor"));
  EXPECT_EQ(cluster.Stop(), 0) << cluster.program->output();
}

TEST_F(Flight, NamesTheRankThatWasKilled) {
  Cluster cluster = Start({"-tp", "2"});
  ASSERT_NE(cluster.port, 0);
  DisturbAStream(cluster, 0, SIGKILL);
  EXPECT_THAT(Records(), testing::IsSupersetOf({"epoch-1-rank-0.flight", "epoch-1-rank-1.flight"}));
  EXPECT_THAT(Trace(), HasSubstr("verdict: rank 0 fell behind"));
  EXPECT_EQ(cluster.Stop(), 0) << cluster.program->output();
}

TEST_F(Flight, NamesAnEarlierStageAlthoughLaterOnesHaveDoneLess) {
  Cluster cluster = Start({"-pp", "2"});
  ASSERT_NE(cluster.port, 0);
  DisturbAStream(cluster, 0, SIGKILL);
  EXPECT_THAT(Trace(), HasSubstr("verdict: rank 0 fell behind"));
  EXPECT_EQ(cluster.Stop(), 0) << cluster.program->output();
}

TEST_F(Flight, AgentsSaveWhatALostLaunchLeaves) {
  Cluster cluster = Start({"-tp", "2", "--max-restarts", "0"});
  ASSERT_NE(cluster.port, 0);
  cluster.Post("/v1/completions", Json::MakeObject({{"prompt", "def f("}, {"max_tokens", 4}}));
  ASSERT_EQ(kill(WorkerOf(cluster, 1), SIGKILL), 0);
  EXPECT_EQ(cluster.program->WaitForExit(absl::Seconds(30)), 1) << cluster.program->output();
  EXPECT_THAT(Records(), testing::IsSupersetOf({"epoch-1-rank-0.flight", "epoch-1-rank-1.flight"}))
      << cluster.program->output();
  EXPECT_THAT(Trace(), HasSubstr("saved by its agent: worker rank 1"));
}

TEST_F(Flight, ALaunchWithoutFailuresLeavesNothing) {
  Cluster cluster = Start({"-tp", "2"});
  ASSERT_NE(cluster.port, 0);
  cluster.Post("/v1/completions", Json::MakeObject({{"prompt", "def f("}, {"max_tokens", 4}}));
  EXPECT_EQ(cluster.Stop(), 0) << cluster.program->output();
  EXPECT_THAT(Records(), testing::IsEmpty());
}

TEST_F(Flight, WhatIsNoRecordIsRefusedByName) {
  const std::unique_ptr<Program> trace =
      Program::Start({POLYREME_BINARY, "trace", POLYREME_BINARY});
  EXPECT_EQ(trace->WaitForExit(absl::Seconds(20)), 1);
  EXPECT_THAT(trace->output(), HasSubstr("polyreme trace: "));
  EXPECT_THAT(trace->output(), HasSubstr(POLYREME_BINARY));
}

}  // namespace
}  // namespace polyreme::e2e
