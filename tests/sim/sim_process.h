// What SimCluster keeps of a worker process, of a process group, and of messages.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/sim/sim_cluster.h"

namespace polyreme::sim {

struct SimCluster::ToRank {
  enum class Kind : uint8_t { kStart, kPlan, kEndEpoch, kStreamEnded };
  Kind kind = Kind::kStart;
  Epoch epoch;
  std::string bytes = {};  // kPlan
};

struct SimCluster::FromRank {
  enum class Kind : uint8_t { kLoaded, kReady, kResult, kFailed, kEpochEnded };
  Kind kind = Kind::kLoaded;
  Epoch epoch = {};
  std::string bytes = {};  // kResult
  absl::Status why = {};   // kFailed
};

struct SimCluster::Process {
  Process(int32_t rank_, int64_t life_, const ClusterSettings& settings, uint64_t seed)
      : rank(rank_),
        life(life_),
        shard(settings.layout, rank_, settings.limits, settings.plant, seed) {}

  const int32_t rank;
  const int64_t life;
  bool alive = true;
  bool hung = false;      // runs nothing; what comes in waits
  bool leaving = false;   // an epoch; what comes in waits
  int64_t ticket = 0;     // to attach with
  bool attached = false;  // its stream is open, as the coordinator knows it
  bool adrift = false;    // its stream is over, as the process itself knows it
  bool dark = false;      // nothing comes through that stream any more
  int64_t stream = 0;     // what was sent on one before it is lost
  bool loading = false;
  bool loaded = false;
  Epoch epoch{0};         // that it was last started in
  Epoch known_epoch{0};   // the highest that it has heard of
  bool starting = false;  // meets the others
  bool serves = false;    // steps of that epoch
  Shard shard;
  std::deque<step::StepPlan> plans;
  bool has_accepted = false;  // the first of them
  std::deque<ToRank> backlog;
  absl::Time last_down = absl::InfinitePast();
  absl::Time last_up = absl::InfinitePast();
};

struct SimCluster::Group : std::enable_shared_from_this<Group> {
  Group(Epoch epoch_, const Layout& layout)
      : epoch(epoch_),
        members(static_cast<size_t>(layout.world_size())),
        arrived(static_cast<size_t>(layout.stages)),
        running(static_cast<size_t>(layout.stages), -1),
        hidden(static_cast<size_t>(layout.stages)),
        draws(static_cast<size_t>(layout.shards)) {}

  const Epoch epoch;
  std::vector<ProcessPtr> members;                               // by rank
  std::vector<std::map<int64_t, int32_t>> arrived;               // [stage][step]: ranks
  std::vector<int64_t> running;                                  // [stage]: a step, or -1
  std::vector<std::map<int64_t, std::vector<uint64_t>>> hidden;  // [stage][step]: inputs
  std::vector<std::map<int64_t, std::vector<TokenId>>> draws;    // [shard][step]: fed back
  std::map<int64_t, std::vector<step::SampleResult>> computed;   // by step
};

}  // namespace polyreme::sim
