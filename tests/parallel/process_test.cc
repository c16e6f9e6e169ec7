// Ranks as real processes: they compute alike, and none waits long for one that was killed.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "parallel/base/clock.h"
#include "parallel/plan/topology.h"
#include "tests/parallel/ranks.h"
#include "tests/parallel/socket_rendezvous.h"

namespace polyreme::comm {
namespace {

using Kind = ProcessGroup::Kind;
using launch::ChildReport;
using testing::AnyOf;
using testing::HasSubstr;

constexpr int kNoVictim = -1;

// A rank process; its end of the socket pair is closed on this side.
struct Child {
  pid_t process = -1;
  UniqueFd socket;
};
Child Spawn(Kind kind, plan::Place extent, int rank, int victim) {
  int ends[2];
  CHECK(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
  UniqueFd ours(ends[0]);
  const UniqueFd theirs(ends[1]);
  std::vector<std::string> words = {POLYREME_COMM_RANK,
                                    std::to_string(theirs.get()),
                                    std::to_string(static_cast<int>(kind)),
                                    std::to_string(extent.stage),
                                    std::to_string(extent.shard),
                                    std::to_string(rank),
                                    std::to_string(victim)};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const pid_t process = ::fork();
  if (process == 0) {
    ::fcntl(theirs.get(), F_SETFD, 0);
    ::execv(arguments[0], arguments.data());
    ::_exit(127);
  }
  CHECK(process > 0);
  return {process, std::move(ours)};
}

// Runs all ranks of a topology of `extent.stage` stages and `extent.shard` shards to their end.
std::vector<ChildReport> RunProcesses(Kind kind, plan::Place extent, int victim) {
  const int size = extent.stage * extent.shard;
  std::vector<Child> children;
  for (int rank = 0; rank < size; ++rank) children.push_back(Spawn(kind, extent, rank, victim));
  launch::InMemoryRendezvous meet;
  std::vector<ChildReport> reports(static_cast<size_t>(size));
  {
    std::vector<std::jthread> servers;
    for (size_t r = 0; r < reports.size(); ++r) {
      servers.emplace_back([&, r] { reports[r] = ServeChild(children[r].socket.get(), meet); });
    }
  }
  for (const Child& child : children) {
    int status = 0;
    CHECK(::waitpid(child.process, &status, 0) == child.process);
  }
  return reports;
}

class Processes : public testing::TestWithParam<Kind> {};
INSTANTIATE_TEST_SUITE_P(All, Processes,
                         testing::Values(Kind::kSharedMemory, Kind::kTcp, Kind::kAuto),
                         [](const auto& instance) { return NameOf(instance.param); });

TEST_P(Processes, FourRanksComputeTheSameBits) {
  for (const plan::Place extent : {plan::Place{1, 4}, plan::Place{2, 2}, plan::Place{4, 1}}) {
    const std::vector<ChildReport> reports = RunProcesses(GetParam(), extent, kNoVictim);
    for (size_t r = 0; r < reports.size(); ++r) {
      EXPECT_TRUE(reports[r].status.ok()) << "rank " << r << ": " << reports[r].status.ToString();
      EXPECT_FALSE(reports[r].result.empty());
      EXPECT_EQ(reports[r].result, reports[0].result) << "rank " << r;
    }
  }
}

TEST_P(Processes, NobodyWaitsLongForOneThatWasKilled) {
  for (const plan::Place extent : {plan::Place{1, 4}, plan::Place{2, 2}}) {
    const absl::Time start = MonotonicNow();
    const std::vector<ChildReport> reports = RunProcesses(GetParam(), extent, 2);
    EXPECT_LT(MonotonicNow() - start, absl::Seconds(60));  // half of a collective's patience
    for (size_t r = 0; r < reports.size(); ++r) {
      EXPECT_TRUE(absl::IsUnavailable(reports[r].status)) << reports[r].status.ToString();
    }
    // At least one saw it for itself; the others may have heard of it.
    std::string all;
    for (const ChildReport& report : reports) all += Message(report.status) + "\n";
    EXPECT_THAT(all, AnyOf(HasSubstr("rank 2 is gone"), HasSubstr("rank 2 closed its connection"),
                           HasSubstr("rank 2 Connection reset")));
  }
}

TEST(Processes, AllKindsOfTransportComputeTheSameBits) {
  const plan::Place extent{1, 4};
  const std::string memory = RunProcesses(Kind::kSharedMemory, extent, kNoVictim)[0].result;
  const std::string tcp = RunProcesses(Kind::kTcp, extent, kNoVictim)[0].result;
  EXPECT_FALSE(memory.empty());
  EXPECT_EQ(memory, tcp);
}

}  // namespace
}  // namespace polyreme::comm
