#include "coordinator/sched/cohorts.h"

#include <algorithm>

#include "parallel/base/status.h"

namespace polyreme::sched {

Cohorts::Cohorts(int32_t num_cohorts) {
  CHECK(num_cohorts > 0);
  cohorts_.resize(static_cast<size_t>(num_cohorts));
}

void Cohorts::Insert(int32_t cohort, Sequence* sequence) {
  std::vector<Sequence*>& members = cohorts_[static_cast<size_t>(cohort)];
  const auto after = std::upper_bound(
      members.begin(), members.end(), sequence,
      [](const Sequence* a, const Sequence* b) { return a->order() < b->order(); });
  members.insert(after, sequence);
  ++size_;
}

void Cohorts::Remove(const Sequence* sequence) {
  for (std::vector<Sequence*>& members : cohorts_) {
    const auto found = std::find(members.begin(), members.end(), sequence);
    if (found == members.end()) continue;
    members.erase(found);
    --size_;
    return;
  }
  CHECK(false, "sequence {} is in no cohort", sequence->id().value);
}

void Cohorts::Clear() {
  for (std::vector<Sequence*>& members : cohorts_) members.clear();
  size_ = 0;
}

bool Cohorts::HasRoom(int32_t cohort, int32_t total) const {
  const int32_t even_share = total / num_cohorts();
  const int32_t members = static_cast<int32_t>(at(cohort).size());
  if (members != even_share) return members < even_share;
  // The remainder is dealt one each to whichever cohorts come first.
  const auto above = std::count_if(cohorts_.begin(), cohorts_.end(), [&](const auto& other) {
    return std::ssize(other) > even_share;
  });
  return above < total % num_cohorts();
}

void Cohorts::Balance(int32_t cohort) {
  const auto largest = std::max_element(
      cohorts_.begin(), cohorts_.end(),
      [](const auto& a, const auto& b) { return a.size() < b.size(); });
  if (largest->size() < at(cohort).size() + 2) return;
  Sequence* moved = largest->back();
  largest->pop_back();
  --size_;
  Insert(cohort, moved);
}

Sequence* Cohorts::YoungestAfter(const Sequence& sequence, StepId step) const {
  Sequence* youngest = nullptr;
  for (const std::vector<Sequence*>& members : cohorts_) {
    const auto found = std::find_if(members.rbegin(), members.rend(), [&](const Sequence* s) {
      return s->last_step() != step;
    });
    if (found == members.rend() || (*found)->order() <= sequence.order()) continue;
    if (youngest == nullptr || (*found)->order() > youngest->order()) youngest = *found;
  }
  return youngest;
}

}  // namespace polyreme::sched
