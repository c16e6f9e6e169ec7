#include "coordinator/engine/standstill.h"

#include <fmt/format.h>

#include <algorithm>

namespace polyreme::engine {
namespace {

// A rank that has not said so again by then goes on.
constexpr absl::Duration kFresh = absl::Milliseconds(2500);
// What one of them has sent last may still be on its way to the other.
constexpr absl::Duration kSettled = absl::Milliseconds(1800);

}  // namespace

void Standstill::Restart(int32_t world_size) {
  waits_.assign(static_cast<size_t>(world_size), Wait{});
  since_.reset();
}

std::optional<std::string> Standstill::Report(int32_t rank, int32_t peer, absl::Duration waited,
                                              const std::vector<bool>& is_idle, absl::Time now) {
  if (rank < 0 || static_cast<size_t>(rank) >= waits_.size()) return std::nullopt;
  // Whoever has answered all has nothing to wait for: it has said so before its answer came.
  if (is_idle[static_cast<size_t>(rank)]) return std::nullopt;
  waits_[static_cast<size_t>(rank)] = {now, peer, waited};
  for (size_t r = 0; r < waits_.size(); ++r) {
    if (is_idle[r] || now - waits_[r].told <= kFresh) continue;
    since_.reset();
    return std::nullopt;
  }
  since_ = since_.value_or(now);
  if (now - *since_ < kSettled) return std::nullopt;
  return Describe(now);
}

std::string Standstill::Describe(absl::Time now) const {
  std::string text;
  absl::Duration longest;
  for (size_t r = 0; r < waits_.size(); ++r) {
    if (now - waits_[r].told > kFresh) continue;
    text += fmt::format("{}rank {} waits for rank {}", text.empty() ? "" : ", ", r, waits_[r].peer);
    longest = std::max(longest, waits_[r].waited);
  }
  return fmt::format("the step stands still: {}, nobody computes, and nothing has come for {}",
                     text, absl::FormatDuration(absl::Trunc(longest, absl::Seconds(1))));
}

}  // namespace polyreme::engine
