// The running sequences, dealt into one cohort per pipeline stage: a step carries one cohort, so
// that while one is in the last stage another is in the first.
#pragma once

#include <cstdint>
#include <vector>

#include "coordinator/sched/sequence.h"

namespace polyreme::sched {

// Borrows the sequences. Pure; one thread.
class Cohorts {
 public:
  // num_cohorts > 0.
  explicit Cohorts(int32_t num_cohorts);

  int32_t num_cohorts() const { return static_cast<int32_t>(cohorts_.size()); }
  // Sequences of all cohorts.
  int32_t size() const { return size_; }
  // In order: who runs first stands first.
  const std::vector<Sequence*>& at(int32_t cohort) const {
    return cohorts_[static_cast<size_t>(cohort)];
  }

  void Insert(int32_t cohort, Sequence* sequence);
  void Remove(const Sequence* sequence);
  void Clear();

  // Whether `cohort` may take one more if `total` sequences are to be dealt so that no two cohorts
  // differ by more than one.
  bool HasRoom(int32_t cohort, int32_t total) const;
  // Moves the youngest of the largest cohort to `cohort` if that is smaller by two or more.
  void Balance(int32_t cohort);
  // The youngest of all that stands after `sequence` and has no row in step `step`; nullptr if
  // there is none.
  Sequence* YoungestAfter(const Sequence& sequence, StepId step) const;

 private:
  std::vector<std::vector<Sequence*>> cohorts_;
  int32_t size_ = 0;
};

}  // namespace polyreme::sched
