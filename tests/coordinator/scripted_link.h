// Workers that "say" scripted text, one byte per token, and can fail, lag or lose their mind on
// command. Every plan is checked as a worker would.
#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "coordinator/engine/worker_link.h"
#include "parallel/step/slot_table.h"

namespace polyreme::engine {

class ScriptedLink final : public WorkerLink {
 public:
  static constexpr TokenId kEnd = 260;  // "<|end|>" of the tiny tokenizer

  explicit ScriptedLink(const step::StepLimits& limits);

  absl::Status Submit(const step::StepPlan& plan) override;
  absl::StatusOr<step::StepResult> Await(StepId step, absl::Time deadline) override;
  void Abort(Epoch epoch) noexcept override;
  absl::StatusOr<Epoch> Recover(const absl::Status& why) override;
  // New workers come after a failure, so many times.
  void AllowRecoveries(int32_t count) { recoveries_left_ = count; }
  int64_t num_recoveries() const { return epoch_ - 1; }

  // What is drawn for a prompt that begins with token `key`: the text's bytes, then kEnd for ever.
  void Say(TokenId key, std::string text) { texts_[key] = std::move(text); }
  // The draw for output token `index` of such a prompt is not finite.
  void Poison(TokenId key, int32_t index) { poisoned_[key] = index; }
  // Every step with a row of such a prompt kills the workers that take it.
  void Kill(TokenId key) { killers_.insert(key); }
  // Await fails from this step on.
  void FailAt(StepId step, absl::Status why);
  // Await waits from this step on, until Release or Abort.
  void HoldAt(StepId step);
  void Release();
  // Waits until the engine is held.
  void WaitUntilHeld() const;

  const step::SlotTable& slots() const { return slots_; }
  int num_aborts() const;
  // New workers, that know nothing.
  void Restart();

 private:
  step::SampleResult Answer(const step::Sample& sample, int32_t position) const;

  const step::StepLimits limits_;
  step::SlotTable slots_;
  std::map<TokenId, std::string> texts_;
  std::map<TokenId, int32_t> poisoned_;
  std::set<TokenId> killers_;
  bool killed_ = false;
  int32_t recoveries_left_ = 0;
  int64_t epoch_ = 1;
  std::deque<step::StepResult> answers_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  StepId fail_at_{INT64_MAX};  // guarded by mutex_, and so on
  absl::Status failure_;
  StepId hold_at_{INT64_MAX};
  int num_aborts_ = 0;
  bool is_held_ = false;
};

}  // namespace polyreme::engine
