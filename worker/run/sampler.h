// From a step's logits to its tokens: what the plan and the slots say about each sample, as arrays
// on the device, and the outputs back on the host. Last stage only; every shard samples alike.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/step/slot_table.h"
#include "parallel/step/step_plan.h"
#include "parallel/tensor/device.h"
#include "worker/ops/ops.h"
#include "worker/run/staged_array.h"

namespace polyreme::run {

// Upload, Sample and Download: step thread. ResultsOf: the collecting thread.
class Sampler {
 public:
  // Takes all its memory now. device and ops are borrowed and outlive the sampler.
  static absl::StatusOr<std::unique_ptr<Sampler>> Make(Device& device, ops::Ops& ops,
                                                       const step::StepLimits& limits);

  // plan: valid, and applied to `slots`. Counts the tokens of slots that it opens, if their
  // penalties need them.
  void Upload(Lane& lane, const step::StepPlan& plan, const step::SlotTable& slots);
  // logits of samples [samples.begin, samples.end) of the plan uploaded last, [shards, n, V];
  // outputs [S].
  void Sample(Lane& lane, Range samples, ConstTensorView logits, ops::SampleOutput* outputs);
  // Brings the step's outputs [S] to the host; the pointer stays until NumStepBuffers steps later.
  const ops::SampleOutput* Download(Lane& lane, const step::StepPlan& plan,
                                    const ops::SampleOutput* outputs);
  // After the lane has passed the step's Download.
  std::vector<step::SampleResult> ResultsOf(StepId step, int32_t num_samples) const;

  // Of the lane's arena, for chunks of num_samples.
  static int64_t ScratchBytes(int64_t num_samples, int64_t vocabulary);

 private:
  Sampler(Device& device, ops::Ops& ops, const step::StepLimits& limits);
  absl::Status Allocate();
  void CountTokens(Lane& lane, const step::SlotTable& slots, SlotId slot);
  ops::SampleSpec SpecOf(const step::Sample& sample, int32_t position,
                         const step::SlotTable::Slot& slot);
  void AppendLists(const step::SlotTable::Slot& slot, ops::SampleSpec& spec);

  Device& device_;
  ops::Ops& ops_;
  const step::StepLimits limits_;
  step::RowFinder finder_;

  StepId step_;             // of the last Upload
  int32_t num_biases_ = 0;  // of it
  int32_t num_allowed_ = 0;
  StagedArray<ops::SampleSpec> specs_;  // [S]
  StagedArray<int32_t> bias_tokens_;
  StagedArray<float> bias_values_;
  StagedArray<int32_t> allowed_tokens_;
  StagedArray<int32_t> top_tokens_;  // [S, kMaxLogprobs], coming back
  StagedArray<float> top_logprobs_;
  Buffer host_outputs_;  // [buffers, S]
  // [slots, vocabulary]. One slot's counts are staged at a time: a new one waits for the upload
  // before.
  Buffer counts_;
  Buffer staged_counts_;
  LaneMark counts_uploaded_;
};

}  // namespace polyreme::run
