// Tokens that the last stage samples return to the first outside the lane: if they went by the
// lane, the first stage sending hidden states and the last one sending tokens could each wait for
// the other.
//
// With one stage it is a ring on the device. With several, each shard of the last stage sends the
// outputs of a step to its twin in the first over the group's feedback transport: a thread of the
// last stage sends as soon as the lane has computed them, a thread of the first stage always
// receives, into a ring that holds more steps than can be in flight. Stages between need no tokens.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/bounded_queue.h"
#include "parallel/base/status.h"
#include "parallel/comm/process_group.h"
#include "parallel/step/step_plan.h"
#include "parallel/tensor/device.h"
#include "parallel/trace/flight_ring.h"
#include "worker/ops/ops.h"
#include "worker/run/staged_array.h"

namespace polyreme::run {

// Everything that a feedback holds; nothing but on the first stage.
struct FeedbackMemory {
  // is_first, is_last: of the stage that it is for.
  static absl::StatusOr<FeedbackMemory> Make(Device& device, const step::StepLimits& limits,
                                             bool is_first, bool is_last);
  // A token is fetched at most max_steps_in_flight steps after it was drawn, and the device may
  // read it as much later.
  static int64_t RingSteps(const step::StepLimits& limits) {
    return 2 * int64_t{limits.max_steps_in_flight};
  }

  // [ring_steps, max samples] outputs, then [max tokens] of the plan. The tokens of a step are
  // gathered from it, word by word.
  Buffer source;
  Buffer plan_tokens;  // [buffers, max tokens] on the host, on their way to the end of `source`
  StagedArray<int32_t> places;  // [T] words of `source`
  Buffer received;              // of several stages: [ring_steps, max samples] outputs on the host
};

// Fetch and Publish: step thread. Errors go to the lane, from any thread.
class TokenFeedback {
 public:
  // All borrowed and outliving the feedback.
  struct Parts {
    Device* device = nullptr;
    ops::Ops* ops = nullptr;
    Lane* lane = nullptr;
    comm::ProcessGroup* group = nullptr;
    trace::FlightRing* recorder = nullptr;  // null: none
  };
  static absl::StatusOr<std::unique_ptr<TokenFeedback>> Make(const Parts& parts,
                                                             const step::StepLimits& limits);
  // Ends its thread: at once if the group is aborted, otherwise when the steps it was told of have
  // passed.
  ~TokenFeedback();

  // First stage: tokens [num_tokens] on the device ← the plan's tokens, those fed back in their
  // places, waiting for them as long as it takes or until the lane fails; zeros after them.
  // Elsewhere nothing.
  void Fetch(const step::StepPlan& plan, int32_t num_tokens, int32_t* tokens);
  // Last stage: the step's outputs [S] on the device, until the lane has passed this point, and on
  // the host, being downloaded on the lane and staying until NumStepBuffers steps later.
  void Publish(const step::StepPlan& plan, const ops::SampleOutput* outputs,
               const ops::SampleOutput* host_outputs);

  // Time that Fetch has waited for tokens, and how many it has fed back. Any thread.
  absl::Duration waiting() const { return absl::Nanoseconds(waiting_ns_.load()); }
  int64_t num_fed_back() const { return num_fed_back_.load(); }
  // First stage of several: steps begun while the tokens of an earlier one were still to come, so
  // that stages worked at the same time. Any thread.
  int64_t num_overlapped() const { return num_overlapped_.load(); }

 private:
  struct Header {
    int64_t step = 0;
    int64_t num_samples = 0;
  };
  // A step whose outputs come into the host's ring.
  struct Expected {
    StepId step{-1};
    int64_t num_samples = 0;
    bool on_device = false;
  };
  // One step's outputs on their way.
  struct Parcel {
    StepId step;
    int64_t num_samples = 0;
    LaneMark computed;                                // last stage
    const ops::SampleOutput* host_outputs = nullptr;  // last stage
  };

  TokenFeedback(const Parts& parts, const step::StepLimits& limits);
  // First stage of several: tells the courier what comes, and its ring where it will be.
  void Expect(const step::StepPlan& plan);
  void ReceiveAll();
  absl::Status Receive(const Parcel& parcel, std::vector<std::byte>& message);
  void SendAll();
  absl::Status Send(const Parcel& parcel, std::vector<std::byte>& message);
  // First stage of several: waits for the step's outputs and brings them to the device. False: the
  // lane has failed.
  bool BringToDevice(StepId step);
  bool AwaitStep(StepId step);
  // Where a sample's token lies in the source, in words.
  int32_t PlaceOf(const step::TokenSource& source) const;
  int64_t RingIndex(StepId step) const { return step.value % ring_steps_; }
  // Of the rings, in outputs.
  int64_t FirstOutputOf(StepId step) const { return RingIndex(step) * limits_.max_step_samples; }
  // In the ring on the device.
  ops::SampleOutput* OutputsOf(StepId step) const {
    return static_cast<ops::SampleOutput*>(memory_.source.data()) + FirstOutputOf(step);
  }

  const Parts parts_;
  const step::StepLimits limits_;
  const bool is_first_;
  const bool is_last_;
  const int64_t ring_steps_;

  FeedbackMemory memory_;

  // First stage of several.
  std::vector<Expected> expected_;  // [ring_steps]
  std::mutex mutex_;
  std::condition_variable arrived_;
  StepId last_expected_{-1};      // step thread
  StepId last_received_{-1};      // guarded by mutex_
  bool courier_gave_up_ = false;  // guarded by mutex_

  BoundedQueue<Parcel> parcels_;
  std::thread courier_;
  std::atomic<int64_t> waiting_ns_{0};
  std::atomic<int64_t> num_fed_back_{0};
  std::atomic<int64_t> num_overlapped_{0};
};

}  // namespace polyreme::run
