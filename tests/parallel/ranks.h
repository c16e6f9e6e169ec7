// Ranks as threads of the test, joined over any kind of transport.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "parallel/comm/process_group.h"
#include "parallel/comm/thread_transport.h"
#include "parallel/launch/rendezvous.h"
#include "tests/parallel/test_lane.h"

namespace polyreme::comm {

// How a set of ranks meets. Defaults suit a test that should pass at once and fail within a minute.
struct RanksOptions {
  ProcessGroup::Kind kind = ProcessGroup::Kind::kThreads;
  int32_t stages = 1;
  int32_t shards = 1;
  Epoch epoch{1};
  absl::Duration patience = absl::Seconds(30);
  launch::Rendezvous* meet = nullptr;  // borrowed; null: one of this run's own
  // Changes what one rank says of itself.
  std::function<void(Rank, ProcessGroup::Options&)> adjust = [](Rank, ProcessGroup::Options&) {};
};

// Runs `body` on a thread per rank, each with its group and lane; the status of each rank: of
// joining, else the lane's.
std::vector<absl::Status> RunRanks(const RanksOptions& options,
                                   const std::function<void(ProcessGroup&, Lane&)>& body);
// The same, and expects all to be well.
void ExpectAllWell(const RanksOptions& options,
                   const std::function<void(ProcessGroup&, Lane&)>& body);

std::string NameOf(ProcessGroup::Kind kind);

}  // namespace polyreme::comm
