// Workers without a model: every plan is answered at once, every draw is a hash. For tests and for
// measuring the coordinator alone.
#pragma once

#include <deque>

#include "coordinator/engine/worker_link.h"

namespace polyreme::engine {

// The token drawn for a sequence depends on the sequence and the position alone, so that neither
// company nor chunking shows. One thread.
class NullLink final : public WorkerLink {
 public:
  explicit NullLink(const step::StepLimits& limits);

  absl::Status Submit(const step::StepPlan& plan) override;
  absl::StatusOr<step::StepResult> Await(StepId step, absl::Time deadline) override;
  void Abort(Epoch epoch) noexcept override;

  // What it draws for `sequence` at `position`, for a vocabulary of so many.
  static TokenId DrawAt(SequenceId sequence, int32_t position, int32_t vocabulary);

 private:
  const int32_t vocabulary_;
  std::vector<SequenceId> sequence_of_slot_;
  std::deque<step::StepResult> answers_;
  bool aborted_ = false;
};

}  // namespace polyreme::engine
