#include "coordinator/sched/growth_horizon.h"

#include <algorithm>

#include "parallel/base/status.h"

namespace polyreme::sched {

GrowthHorizon::GrowthHorizon(int32_t least, int32_t most)
    : least_(least), most_(most), tokens_(least) {
  CHECK(0 < least && least <= most, "{} to {} tokens", least, most);
}

void GrowthHorizon::NoteStep() {
  if (deaf_steps_ > 0) --deaf_steps_;
  if (tokens_ == least_ || ++quiet_steps_ < tokens_) return;
  quiet_steps_ = 0;
  tokens_ = std::max(least_, tokens_ - std::max(1, tokens_ / 8));
}

void GrowthHorizon::NotePreemption() {
  quiet_steps_ = 0;
  if (deaf_steps_ > 0) return;
  deaf_steps_ = tokens_;
  tokens_ = static_cast<int32_t>(std::min<int64_t>(most_, int64_t{2} * tokens_));
}

}  // namespace polyreme::sched
