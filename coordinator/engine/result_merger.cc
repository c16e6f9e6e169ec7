#include "coordinator/engine/result_merger.h"

#include <algorithm>
#include <string>

#include "parallel/base/clock.h"

namespace polyreme::engine {

absl::Status ResultMerger::Expect(StepId step) {
  const std::lock_guard lock(mutex_);
  if (!failure_.ok()) return failure_;
  Pending pending;
  pending.merged.id = step;
  pending.merged.epoch = epoch_;
  pending.answered.assign(static_cast<size_t>(world_size_), false);
  pending_.push_back(std::move(pending));
  return absl::OkStatus();
}

void ResultMerger::Restart(Epoch epoch) {
  const std::lock_guard lock(mutex_);
  epoch_ = epoch;
  pending_.clear();
  failure_ = absl::OkStatus();
}

absl::Status ResultMerger::Add(Rank rank, step::StepResult result) {
  const std::lock_guard lock(mutex_);
  if (!failure_.ok() || result.epoch < epoch_) return absl::OkStatus();
  if (result.epoch != epoch_) {
    return FailLocked(Internal("rank {} answered for epoch {}, but this is epoch {}", rank.value,
                               result.epoch.value, epoch_.value));
  }
  const auto found = std::find_if(pending_.begin(), pending_.end(),
                                  [&](const Pending& p) { return p.merged.id == result.id; });
  const size_t index = static_cast<size_t>(rank.value);
  if (found == pending_.end() || found->answered[index]) {
    return FailLocked(Internal("rank {} answered step {}, which is not open for it", rank.value,
                               result.id.value));
  }
  found->answered[index] = true;
  ++found->num_answered;
  step::StepResult& merged = found->merged;
  merged.timings.insert(merged.timings.end(), result.timings.begin(), result.timings.end());
  if (!result.samples.empty()) merged.samples = std::move(result.samples);
  if (found->num_answered == world_size_) changed_.notify_all();
  return absl::OkStatus();
}

std::vector<bool> ResultMerger::IdleRanks() const {
  const std::lock_guard lock(mutex_);
  std::vector<bool> idle(static_cast<size_t>(world_size_), true);
  for (const Pending& pending : pending_) {
    for (size_t rank = 0; rank < idle.size(); ++rank) {
      if (!pending.answered[rank]) idle[rank] = false;
    }
  }
  return idle;
}

void ResultMerger::Fail(absl::Status why) {
  const std::lock_guard lock(mutex_);
  FailLocked(std::move(why)).IgnoreError();
}

absl::Status ResultMerger::FailLocked(absl::Status why) {
  CHECK(!why.ok());
  if (failure_.ok()) {
    failure_ = why;
    changed_.notify_all();
  }
  return why;
}

absl::StatusOr<step::StepResult> ResultMerger::Await(StepId step, absl::Time deadline) {
  std::unique_lock lock(mutex_);
  if (!failure_.ok()) return failure_;
  CHECK(!pending_.empty() && pending_.front().merged.id == step,
        "step {} is not the oldest in flight", step.value);
  const bool woken = changed_.wait_until(lock, ToSteady(deadline), [&] {
    return !failure_.ok() || pending_.front().num_answered == world_size_;
  });
  if (!failure_.ok()) return failure_;
  if (!woken) {
    std::string missing;
    for (size_t r = 0; r < pending_.front().answered.size(); ++r) {
      if (!pending_.front().answered[r])
        missing += fmt::format("{}{}", missing.empty() ? "" : ", ", r);
    }
    return DeadlineExceeded("step {} was not answered in time by rank {}", step.value, missing);
  }
  step::StepResult merged = std::move(pending_.front().merged);
  pending_.pop_front();
  return merged;
}

absl::Status ResultMerger::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

}  // namespace polyreme::engine
