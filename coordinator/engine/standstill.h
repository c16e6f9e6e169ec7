// The verdict by step progress: ranks that all wait for one another, while nothing comes or goes,
// wait for what a link has lost; no deadline has to be awaited. A rank that computes does not wait,
// however long it takes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace polyreme::engine {

// Ranks say each second that they wait, once they have for a while (proto's Standing). One owner.
class Standstill {
 public:
  explicit Standstill(int32_t world_size) { Restart(world_size); }

  // Another epoch.
  void Restart(int32_t world_size);
  // `rank` says that nothing has moved for `waited`, for want of `peer`. is_idle: by rank, whether
  // it has answered every step that it was given. Says what stands still, when that is certain.
  std::optional<std::string> Report(int32_t rank, int32_t peer, absl::Duration waited,
                                    const std::vector<bool>& is_idle, absl::Time now);

 private:
  struct Wait {
    absl::Time told = absl::InfinitePast();
    int32_t peer = -1;
    absl::Duration waited;
  };
  std::string Describe(absl::Time now) const;

  std::vector<Wait> waits_;
  std::optional<absl::Time> since_;  // all have been waiting
};

}  // namespace polyreme::engine
