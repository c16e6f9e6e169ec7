#include "tests/parallel/ranks.h"

#include <gtest/gtest.h>

#include <thread>

#include "parallel/base/clock.h"

namespace polyreme::comm {

std::vector<absl::Status> RunRanks(const RanksOptions& options,
                                   const std::function<void(ProcessGroup&, Lane&)>& body) {
  const absl::StatusOr<plan::Topology> topology =
      plan::Topology::Make(options.stages, options.shards);
  CHECK(topology.ok());
  launch::InMemoryRendezvous own;
  launch::Rendezvous& meet = options.meet != nullptr ? *options.meet : own;
  ThreadHub hub;
  std::vector<absl::Status> results(static_cast<size_t>(topology->world_size()));
  const auto run = [&](Rank self) -> absl::Status {
    ProcessGroup::Options join;
    join.kind = options.kind;
    join.self = self;
    join.epoch = options.epoch;
    join.deadline = MonotonicNow() + options.patience;
    join.job_token = "the token of this test";
    join.listen_address = "127.0.0.2";
    join.hub = &hub;
    options.adjust(self, join);
    ASSIGN_OR_RETURN(const std::unique_ptr<ProcessGroup> group,
                     ProcessGroup::Join(*topology, meet, join));
    TestLane lane;
    lane.SetFailureHook([&](const absl::Status& why) { group->Abort(why); });
    body(*group, lane);
    return lane.status();
  };
  {
    std::vector<std::jthread> ranks;
    for (int32_t r = 0; r < topology->world_size(); ++r) {
      ranks.emplace_back([&, r] { results[static_cast<size_t>(r)] = run(Rank{r}); });
    }
  }
  return results;
}

void ExpectAllWell(const RanksOptions& options,
                   const std::function<void(ProcessGroup&, Lane&)>& body) {
  const std::vector<absl::Status> results = RunRanks(options, body);
  for (size_t r = 0; r < results.size(); ++r) {
    EXPECT_TRUE(results[r].ok()) << "rank " << r << ": " << results[r].ToString();
  }
}

std::string NameOf(ProcessGroup::Kind kind) {
  switch (kind) {
    case ProcessGroup::Kind::kAuto:
      return "Auto";
    case ProcessGroup::Kind::kThreads:
      return "Threads";
    case ProcessGroup::Kind::kSharedMemory:
      return "SharedMemory";
    case ProcessGroup::Kind::kTcp:
      return "Tcp";
    case ProcessGroup::Kind::kNccl:
      return "Nccl";
  }
  return "Unknown";
}

}  // namespace polyreme::comm
