// Workers that die or hang in the middle of streams: every stream is complete and equal to an
// undisturbed one, and what cannot be recovered ends named.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <csignal>
#include <string>
#include <vector>

#include "parallel/base/clock.h"
#include "tests/coordinator/api/raw_client.h"
#include "tests/e2e/launched_cluster.h"
#include "tests/e2e/stories.h"

namespace polyreme::e2e {
namespace {

using ::testing::HasSubstr;

void Kill(const Cluster& cluster, int rank) {
  Strike(WorkerOf(*cluster.program, rank), SIGKILL);
}

void KillEachRank(const std::vector<std::string>& layout, int world) {
  std::vector<std::string> arguments = layout;
  arguments.insert(arguments.end(), {"--max-restarts", "10"});
  Cluster cluster = StartCluster({}, arguments);
  ASSERT_NE(cluster.port, 0);
  const std::vector<Story> want = Tell(cluster);
  ASSERT_EQ(want.size(), 3u);
  ASSERT_EQ(want[2].size(), 2u);
  for (int rank = 0; rank < world; ++rank) {
    EXPECT_EQ(Tell(cluster, [&] { Kill(cluster, rank); }), want) << "rank " << rank << "\n"
                                                                 << cluster.program->output();
    EXPECT_THAT(
        cluster.Get("/metrics"),
        HasSubstr(fmt::format("recoveries_total{{model_name=\"demo-model\"}} {}", rank + 1)));
  }
  EXPECT_THAT(cluster.Get("/health"), HasSubstr("ok"));
  EXPECT_EQ(cluster.Stop(), 0) << cluster.program->output();
}

TEST(Recovery, EachRankOfTwoShardsMayBeKilled) {
  KillEachRank({"-tp", "2"}, 2);
}
TEST(Recovery, EachRankOfTwoStagesMayBeKilled) {
  KillEachRank({"-pp", "2"}, 2);
}
TEST(Recovery, EachRankOfAGridMayBeKilled) {
  KillEachRank({"-tp", "2", "-pp", "2"}, 4);
}
TEST(Recovery, EachRankMayBeKilledOverTcp) {
  KillEachRank({"-tp", "2", "--transport", "tcp"}, 2);
}

TEST(Recovery, ASecondDeathDuringRecoveryIsOneMoreRecovery) {
  Cluster cluster = StartCluster({}, {"-tp", "2", "--max-restarts", "10"});
  ASSERT_NE(cluster.port, 0);
  const std::vector<Story> want = Tell(cluster);
  const std::vector<Story> got = Tell(cluster, [&] {
    // The rank that is left stands still, so that the recovery cannot end before it dies.
    Strike(WorkerOf(*cluster.program, 1), SIGSTOP);
    Kill(cluster, 0);
    int32_t code = 200;
    for (int i = 0; i < 300 && code != 503; ++i) {
      code = api::Exchange(cluster.port, api::Get("/health")).code;
      poll(nullptr, 0, 5);
    }
    EXPECT_EQ(code, 503);
    Kill(cluster, 1);
  });
  EXPECT_EQ(got, want) << cluster.program->output();
  EXPECT_EQ(cluster.Stop(), 0) << cluster.program->output();
}

TEST(Recovery, AnIdleClusterComesBackToo) {
  Cluster cluster = StartCluster({}, {"-tp", "2"});
  ASSERT_NE(cluster.port, 0);
  const std::vector<Story> want = Tell(cluster);
  Kill(cluster, 1);
  EXPECT_TRUE(cluster.program->WaitForLine("epoch 2 serves", absl::Seconds(20)).has_value())
      << cluster.program->output();
  EXPECT_EQ(Tell(cluster), want);
  EXPECT_EQ(cluster.Stop(), 0) << cluster.program->output();
}

TEST(Recovery, MoreLossesThanAllowedEndTheLaunchNamed) {
  Cluster cluster = StartCluster({}, {"-tp", "2", "--max-restarts", "1"});
  ASSERT_NE(cluster.port, 0);
  const std::vector<pid_t> first = cluster.program->Descendants("polyreme");
  Kill(cluster, 1);
  ASSERT_TRUE(cluster.program->WaitForLine("epoch 2 serves", absl::Seconds(20)).has_value())
      << cluster.program->output();
  const std::vector<pid_t> family = cluster.program->Descendants("polyreme");
  Kill(cluster, 0);
  const std::optional<int> exit = cluster.program->WaitForExit(absl::Seconds(15));
  ASSERT_TRUE(exit.has_value()) << cluster.program->output();
  EXPECT_EQ(*exit, 1);
  EXPECT_THAT(cluster.program->output(), HasSubstr("--max-restarts"));
  EXPECT_THAT(cluster.program->output(), HasSubstr("worker rank 0"));
  EXPECT_EQ(FirstAlive(family, absl::Seconds(5)), std::nullopt);
}

TEST(Recovery, AWorkerThatStandsStillIsFoundNamedAndReplaced) {
  Cluster cluster = StartCluster({}, {"-tp", "2"});
  ASSERT_NE(cluster.port, 0);
  const std::vector<Story> want = Tell(cluster);
  const std::vector<Story> got = Tell(cluster, [&] {
    const pid_t pid = WorkerOf(*cluster.program, 1);
    Strike(pid, SIGSTOP);
    const absl::Time begin = MonotonicNow();
    EXPECT_TRUE(
        cluster.program
            ->WaitForLine(fmt::format("worker rank 1 (pid {}) hangs", pid), absl::Seconds(15))
            .has_value())
        << cluster.program->output();
    EXPECT_LE(MonotonicNow() - begin, absl::Seconds(10));
  });
  EXPECT_EQ(got, want) << cluster.program->output();
  EXPECT_EQ(cluster.Stop(), 0) << cluster.program->output();
}

TEST(Recovery, UnderMpirunEachAgentReplacesItsOwn) {
  Cluster cluster = StartCluster(Mpirun(2), {"-tp", "2"});
  ASSERT_NE(cluster.port, 0);
  const std::vector<Story> want = Tell(cluster);
  EXPECT_EQ(Tell(cluster, [&] { Kill(cluster, 1); }), want) << cluster.program->output();
  cluster.program->Signal(SIGUSR2);
  EXPECT_EQ(cluster.program->WaitForExit(absl::Seconds(20)), 0) << cluster.program->output();
}

}  // namespace
}  // namespace polyreme::e2e
