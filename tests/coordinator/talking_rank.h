// Ranks that only talk: over the real wire, without a model.
#pragma once

#include <gtest/gtest.h>

#include <future>
#include <string>
#include <vector>

#include "coordinator/engine/cluster.h"
#include "parallel/base/clock.h"
#include "worker/run/coordinator_link.h"

namespace polyreme::engine {

inline constexpr char kToken[] = "a-token-of-this-test-0123456789";
inline constexpr absl::Duration kPatience = absl::Seconds(30);

inline ClusterOptions TwoShards(int64_t incarnation, int64_t epoch) {
  ClusterOptions options;
  options.topology = *plan::Topology::Make(1, 2);
  options.job_token = kToken;
  options.build_id = "build";
  options.settings = "s=1\n";
  options.checkpoint = "c";
  options.join_timeout = kPatience;
  options.num_blocks_max = 1000;
  options.incarnation = incarnation;
  options.epoch = Epoch{epoch};
  return options;
}

inline run::JoinInfo Identity(int32_t rank, int64_t known_epoch, int64_t known_incarnation) {
  run::JoinInfo info;
  info.rank = Rank{rank};
  info.world_size = 2;
  info.host = "here";
  info.pid = 100 + rank;
  info.build_id = "build";
  info.settings = "s=1\n";
  info.checkpoint = "c";
  info.known_epoch = Epoch{known_epoch};
  info.known_incarnation = known_incarnation;
  return info;
}

// A rank that has its weights, and perhaps a pool.
class TalkingRank {
 public:
  TalkingRank(const Cluster& cluster, const run::JoinInfo& identity, int32_t num_blocks_held)
      : link_(cluster.address(), kToken, identity) {
    const absl::Status dialled =
        link_.DialIn(MonotonicNow() + kPatience, run::CoordinatorLink::Effort::kOnce);
    EXPECT_TRUE(dialled.ok()) << dialled;
    link_.TellLoaded(run::LoadedReport{1, 10, 500, 0},
                     [num_blocks_held] { return num_blocks_held; });
  }

  // Does as it is told until all serve; the start order that led there.
  run::StartOrder ServeAsTold() {
    run::StartOrder start;
    for (;;) {
      const absl::StatusOr<run::Order> order = link_.client()->Read();
      if (!order.ok()) {
        ADD_FAILURE() << order.status();
        return start;
      }
      if (std::holds_alternative<run::ServingOrder>(*order)) return start;
      if (const auto* end = std::get_if<run::EndEpochOrder>(&*order)) {
        link_.NoteEpoch(end->epoch);
        EXPECT_TRUE(link_.client()->SendEpochEnded(end->epoch).ok());
      } else if (const auto* begin = std::get_if<run::StartOrder>(&*order)) {
        start = *begin;
        EXPECT_TRUE(link_.Admit(start.epoch).ok()) << start.epoch.value;
        EXPECT_TRUE(link_.client()->SendReady(start.epoch, {}).ok());
      } else {
        ADD_FAILURE() << "an order that is out of place";
        return start;
      }
    }
  }

  void Leave() { link_.client()->Finish(); }
  run::CoordinatorLink& link() { return link_; }

 private:
  run::CoordinatorLink link_;
};

// The cluster's wait, and the ranks' lives, at once.
inline std::vector<run::StartOrder> Serve(Cluster& cluster,
                                          const std::vector<TalkingRank*>& ranks) {
  std::vector<std::future<run::StartOrder>> lives;
  for (TalkingRank* rank : ranks) {
    lives.push_back(std::async(std::launch::async, [rank] { return rank->ServeAsTold(); }));
  }
  const absl::Status ready = cluster.WaitUntilReady();
  EXPECT_TRUE(ready.ok()) << ready;
  if (!ready.ok()) cluster.Stop(ready, MonotonicNow());
  std::vector<run::StartOrder> starts;
  for (std::future<run::StartOrder>& life : lives) starts.push_back(life.get());
  return starts;
}

}  // namespace polyreme::engine
