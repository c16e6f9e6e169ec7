// From a step's logits to its tokens: what the plan and the slots say about each sample, as arrays
// on the device, and the outputs back on the host. Last stage only; every shard samples alike.
#pragma once

#include <array>
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

// Everything that a sampler holds.
struct SamplerMemory {
  // One slot's counts are staged at a time, in one of so many places; the next slot waits only when
  // the lane has not yet passed the upload of the one so many before it.
  static constexpr int32_t kStagedRows = 16;

  static absl::StatusOr<SamplerMemory> Make(Device& device, const step::StepLimits& limits);

  StagedArray<ops::SampleSpec> specs;  // [S]
  StagedArray<int32_t> bias_tokens;
  StagedArray<float> bias_values;
  StagedArray<int32_t> allowed_tokens;
  Buffer outputs;                   // [S]
  StagedArray<int32_t> top_tokens;  // [S, kMaxLogprobs], coming back
  StagedArray<float> top_logprobs;
  Buffer host_outputs;   // [buffers, S]
  Buffer counts;         // [slots, vocabulary]
  Buffer staged_counts;  // [kStagedRows, vocabulary] on the host
};

// Upload, Sample and Download: step thread. ResultsOf: the collecting thread. What is sampled is
// written to the same memory in each step, so that sampling may be recorded.
class Sampler {
 public:
  // Takes all its memory now. device and ops are borrowed and outlive the sampler.
  static absl::StatusOr<std::unique_ptr<Sampler>> Make(Device& device, ops::Ops& ops,
                                                       const step::StepLimits& limits);

  // plan: valid, and applied to `slots`. Counts the tokens of slots that it opens, if their
  // penalties need them. Samples beyond the plan's, up to num_samples, are padding.
  void Upload(Lane& lane, const step::StepPlan& plan, const step::SlotTable& slots,
              int32_t num_samples);
  // logits of samples [samples.begin, samples.end) of the plan uploaded last, [shards, n, V].
  void Sample(Lane& lane, Range samples, ConstTensorView logits);
  // [S] on the device, of the step sampled last.
  const ops::SampleOutput* outputs() const {
    return static_cast<const ops::SampleOutput*>(memory_.outputs.data());
  }
  // Brings the step's outputs [S] to the host; the pointer stays until NumStepBuffers steps later.
  const ops::SampleOutput* Download(Lane& lane, const step::StepPlan& plan);
  // After the lane has passed the step's Download.
  std::vector<step::SampleResult> ResultsOf(StepId step, int32_t num_samples) const;

  // Of the lane's arena, for chunks of num_samples.
  static int64_t ScratchBytes(int64_t num_samples, int64_t vocabulary);

 private:
  Sampler(Device& device, ops::Ops& ops, const step::StepLimits& limits, SamplerMemory memory);
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
  const SamplerMemory memory_;
  int64_t num_counted_ = 0;  // slots so far
  std::array<LaneMark, SamplerMemory::kStagedRows> counts_uploaded_;
};

}  // namespace polyreme::run
