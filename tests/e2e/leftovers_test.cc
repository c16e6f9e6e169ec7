// SIGKILL of what holds a job together: no child lives on, nothing is left in /dev/shm or the
// temporary directory, no port is held, and the same line starts again at once. And many launches,
// none of which hangs.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "parallel/base/clock.h"
#include "tests/coordinator/api/raw_client.h"
#include "tests/e2e/launched_cluster.h"
#include "tests/e2e/stories.h"

namespace polyreme::e2e {
namespace {

using ::testing::IsEmpty;

enum class Victim { kAgent, kProcessGroup, kMpirun, kAgentOfMpirun, kFirstAgentOfMpirun };

std::string NameOf(Victim victim) {
  switch (victim) {
    case Victim::kAgent:
      return "agent";
    case Victim::kProcessGroup:
      return "process_group";
    case Victim::kMpirun:
      return "mpirun";
    case Victim::kAgentOfMpirun:
      return "agent_of_mpirun";
    case Victim::kFirstAgentOfMpirun:
      return "first_agent_of_mpirun";
  }
  return "";
}

class Leftovers : public testing::TestWithParam<Victim> {
 protected:
  Leftovers() : port_(FreePort()) {
    const bool alone = GetParam() == Victim::kAgent || GetParam() == Victim::kProcessGroup;
    if (!alone) line_ = Mpirun(2);
    line_.insert(line_.end(), {POLYREME_BINARY, "serve", kDemoModel, "-tp", "2", "--port",
                               std::to_string(port_)});
  }

  std::unique_ptr<Program> Start() const { return Program::Start(line_, traces_.environment()); }

  void ExpectReady(Program& program) const {
    const std::string ready = fmt::format("at http://127.0.0.1:{}", port_);
    ASSERT_TRUE(program.WaitForLine(ready, absl::Seconds(60)).has_value()) << program.output();
  }

  // Kills the victim, and finds nothing.
  void ExpectNothingLeftOf(Program& program, bool traces_too) const {
    const std::vector<pid_t> family = program.Descendants("polyreme");
    ASSERT_FALSE(family.empty());
    switch (GetParam()) {
      case Victim::kAgent:
      case Victim::kMpirun:
        program.Signal(SIGKILL);
        break;
      case Victim::kProcessGroup:
        ASSERT_EQ(kill(-program.pid(), SIGKILL), 0);
        break;
      case Victim::kAgentOfMpirun:
      case Victim::kFirstAgentOfMpirun: {
        std::vector<pid_t> agents = program.Descendants("polyreme serve");
        ASSERT_EQ(agents.size(), 2u);
        std::sort(agents.begin(), agents.end());
        Strike(agents[GetParam() == Victim::kAgentOfMpirun ? 1 : 0], SIGKILL);
      }
    }
    const std::optional<int> exit = program.WaitForExit(absl::Seconds(20));
    ASSERT_TRUE(exit.has_value()) << program.output();
    EXPECT_NE(*exit, 0);
    EXPECT_EQ(FirstAlive(family, absl::Seconds(5)), std::nullopt) << program.output();
    if (traces_too) {
      EXPECT_THAT(traces_.Left(), IsEmpty());
    }
  }

  const int32_t port_;
  const Traces traces_;
  std::vector<std::string> line_;
};

TEST_P(Leftovers, NothingIsLeftOfAServingJobAndTheSameLineStartsAgainAtOnce) {
  const auto program = Start();
  ExpectReady(*program);
  ASSERT_FALSE(HasFatalFailure());
  {
    // With streams, whose connections outlive the process that held their port.
    Cluster cluster{nullptr, port_};
    Telling telling(cluster, RequestsThatDecode());
    telling.WaitUntilEachAnswers();
    ExpectNothingLeftOf(*program, /*traces_too=*/true);
  }
  const auto again = Start();
  ExpectReady(*again);
  again->Signal(SIGUSR2);
  EXPECT_EQ(again->WaitForExit(absl::Seconds(20)), 0) << again->output();
  EXPECT_THAT(traces_.Left(), IsEmpty());
}

// A job killed so early cannot clean up; the next one does.
TEST_P(Leftovers, WhatAJobKilledBeforeAllHadMetLeavesIsGoneWithTheNext) {
  const auto program = Start();
  std::vector<pid_t> coordinators;
  ASSERT_TRUE(WaitUntil(absl::Seconds(20), [&] {
    coordinators = program->Descendants("polyreme coordinator");
    return !coordinators.empty() && program->Descendants("polyreme worker").size() == 2;
  })) << program->output();
  Strike(coordinators[0], SIGSTOP);
  ASSERT_EQ(program->Count("ranks have joined"), 0) << program->output();
  ExpectNothingLeftOf(*program, /*traces_too=*/false);
  const auto again = Start();
  ExpectReady(*again);
  EXPECT_THAT(traces_.Left(), IsEmpty());
  again->Signal(SIGUSR2);
  EXPECT_EQ(again->WaitForExit(absl::Seconds(20)), 0) << again->output();
}

INSTANTIATE_TEST_SUITE_P(SigKill, Leftovers,
                         testing::Values(Victim::kAgent, Victim::kProcessGroup, Victim::kMpirun,
                                         Victim::kAgentOfMpirun, Victim::kFirstAgentOfMpirun),
                         [](const auto& instance) { return NameOf(instance.param); });

// POLYREME_LAUNCHES sets how many.
TEST(LaunchStorm, NoneOfManyLaunchesOfFourRanksHangs) {
  const char* const wanted = std::getenv("POLYREME_LAUNCHES");
  const int launches = wanted == nullptr ? 10 : std::atoi(wanted);
  std::vector<absl::Duration> ready;
  std::vector<absl::Duration> ended;
  for (int i = 0; i < launches; ++i) {
    SCOPED_TRACE(fmt::format("launch {} of {}", i + 1, launches));
    const absl::Time begin = MonotonicNow();
    Cluster cluster = StartCluster({}, {"-tp", "2", "-pp", "2"});
    ASSERT_NE(cluster.port, 0);
    ready.push_back(MonotonicNow() - begin);
    const Json answer =
        cluster.Post("/v1/completions",
                     *Json::Parse(R"({"model":"demo-model","prompt":"def f(","max_tokens":1})"));
    EXPECT_NE(answer.Find("choices"), nullptr);
    const absl::Time stop = MonotonicNow();
    ASSERT_EQ(cluster.Stop(), 0) << cluster.program->output();
    ended.push_back(MonotonicNow() - stop);
  }
  const auto quantiles = [](std::vector<absl::Duration> times) {
    std::sort(times.begin(), times.end());
    const auto at = [&](double q) {
      return absl::ToDoubleSeconds(times[static_cast<size_t>(q * double(times.size() - 1))]);
    };
    return fmt::format("p50 {:.2f} s, p99 {:.2f} s, longest {:.2f} s", at(0.5), at(0.99), at(1));
  };
  if (launches > 0) {
    fmt::print("{} launches of 4 ranks: ready after {}; ended after {}\n", launches,
               quantiles(ready), quantiles(ended));
  }
}

}  // namespace
}  // namespace polyreme::e2e
