// One rank's part of every step of one epoch: Enqueue puts a plan's work on the lane, Collect waits
// for its answer while the next step is already running.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/comm/process_group.h"
#include "parallel/step/slot_table.h"
#include "parallel/step/step_plan.h"
#include "parallel/tensor/device.h"
#include "parallel/trace/flight_ring.h"
#include "worker/backend/backend.h"
#include "worker/kv/kv_cache.h"
#include "worker/model/model.h"
#include "worker/run/sampler.h"
#include "worker/run/step_inputs.h"
#include "worker/run/step_memory.h"
#include "worker/run/token_feedback.h"
#include "worker/weights/shard_loader.h"

namespace polyreme::run {

// What a runner has done since it was made.
struct RunnerStats {
  int64_t steps = 0;
  int64_t tokens = 0;
  // First stage: tokens that never went to the coordinator first, and steps begun while an earlier
  // one was in a later stage.
  int64_t fed_back_tokens = 0;
  int64_t overlapped_steps = 0;
  int32_t max_steps_in_flight = 0;  // enqueued and not collected, at most
};

// What recording has cost; zeros on a device where it gains nothing.
struct RecordingReport {
  int64_t bytes = 0;
  absl::Duration time;
  int32_t num_recorded = 0;  // row counts
};

// Made anew for each epoch, with lane, group, slots and feedback; weights and cache outlive it.
// Takes all its memory in Make. One thread enqueues, one thread collects; Abort and stats: any
// thread.
//
// Where the device says so (Device::ReplayRows), steps whose rows are one token each are padded to
// one of a few numbers of rows and replayed: everything that differs between two of them lies in
// memory at fixed addresses. They are recorded in Make.
class ModelRunner {
 public:
  // All borrowed and outliving the runner.
  struct Parts {
    backend::Backend* backend = nullptr;
    const weights::ShardWeights* weights = nullptr;
    const kv::KvCache* cache = nullptr;
    comm::ProcessGroup* group = nullptr;
    trace::FlightRing* recorder = nullptr;  // of steps; null: none
  };
  struct Options {
    step::StepLimits limits;
    Epoch epoch;
    int64_t head_chunk_samples = 64;  // how many samples' logits are in memory at once
  };
  // Every rank of the group makes its runner at the same time: where steps are recorded, they are
  // run. ResourceExhausted: memory; Unimplemented: a family that is not in the table of
  // architectures.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Make(const Parts& parts,
                                                           const Options& options);
  // With steps still in flight it ends the group.
  ~ModelRunner();

  // Plans come in StepId order. InvalidArgument: not a legal plan, or of another epoch;
  // ResourceExhausted: more steps in flight than the limits allow; otherwise the lane's first
  // error.
  absl::Status Enqueue(const step::StepPlan& plan);
  // The oldest step in flight, which must be `step`. The first shard of the last stage answers with
  // samples, every rank with its timing. The lane's first error, or DeadlineExceeded.
  absl::StatusOr<step::StepResult> Collect(StepId step, absl::Time deadline);

  // Ends the group: what is in flight fails soon, here and at the peers. The first reason stays.
  void Abort(const absl::Status& why) { lane_->Fail(why); }
  RunnerStats stats() const;
  // Taken by this runner.
  const StepMemory& memory() const { return memory_; }
  const RecordingReport& recording() const { return recording_; }

 private:
  // A step whose work is on the lane.
  struct InFlight {
    StepId id;
    LaneMark mark;
    int32_t num_samples = 0;
    absl::Duration busy;
    absl::Duration waiting;
    uint64_t record = 0;  // the recorder's ticket
  };

  ModelRunner(const Parts& parts, const Options& options);
  absl::Status Allocate();
  StepShape LargestStep() const;
  ops::Workload WorkloadWithProducts() const;
  // Runs each padded step once, so that it is recorded, after steps that are not, so that nothing
  // is loaded or allocated while recording or serving.
  absl::Status Record();
  absl::Status RunAndWait(const step::StepPlan& plan, const StepSize& size);
  step::StepPlan LongestPlan() const;
  absl::Status CheckRoom() const;
  void Run(const step::StepPlan& plan, const StepSize& size);
  void ForwardStage(const ops::StepBatch& batch);
  absl::Duration Waiting() const;
  void MarkStep(uint64_t record, trace::FlightState state) const;
  bool IsFirstStage() const { return place_.stage == 0; }
  bool IsLastStage() const { return place_.stage == num_stages_ - 1; }
  bool Answers() const { return IsLastStage() && place_.shard == 0; }

  const Parts parts_;
  Options options_;
  const plan::Place place_;
  const int32_t num_stages_;
  const Rank rank_;
  model::Model model_;
  step::SlotTable slots_;
  step::PlanValidator validator_;
  StepMemory memory_;
  StepPadding padding_;
  RecordingReport recording_;
  std::unique_ptr<Lane> lane_;
  std::unique_ptr<StepInputs> inputs_;
  std::unique_ptr<Sampler> sampler_;  // last stage
  std::unique_ptr<TokenFeedback> feedback_;

  mutable std::mutex mutex_;
  std::vector<InFlight> in_flight_;  // guarded by mutex_; a ring of fixed size
  int64_t num_enqueued_ = 0;         // guarded by mutex_
  int64_t num_collected_ = 0;        // guarded by mutex_
  RunnerStats stats_;                // guarded by mutex_
};

}  // namespace polyreme::run
