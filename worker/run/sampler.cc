#include "worker/run/sampler.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "parallel/base/clock.h"
#include "parallel/base/limits.h"

namespace polyreme::run {
namespace {

constexpr uint32_t kInPrompt = uint32_t{1} << 31;  // ops::SampleBatch::token_counts

bool HasPenalty(const step::SamplingParams& p) {
  return p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

}  // namespace

absl::StatusOr<SamplerMemory> SamplerMemory::Make(Device& device, const step::StepLimits& limits) {
  const int32_t buffers = NumStepBuffers(limits.max_steps_in_flight);
  const int64_t samples = limits.max_step_samples;
  // A slot draws once in a step, and only draws have lists.
  const int64_t draws = std::min(samples, int64_t{limits.num_slots});
  const int64_t biases = draws * (limits::kMaxLogitBias + limits::kMaxStopTokens);
  const int64_t allowed = draws * limits::kMaxAllowedTokens;
  const int64_t tops = samples * limits::kMaxLogprobs;
  const int64_t output_bytes = samples * int64_t{sizeof(ops::SampleOutput)};
  const int64_t row_bytes = limits.vocabulary * int64_t{sizeof(uint32_t)};
  using Tokens = StagedArray<int32_t>;
  SamplerMemory memory;
  ASSIGN_OR_RETURN(memory.specs, StagedArray<ops::SampleSpec>::Make(device, samples, buffers));
  ASSIGN_OR_RETURN(memory.bias_tokens, Tokens::Make(device, biases, buffers));
  ASSIGN_OR_RETURN(memory.bias_values, StagedArray<float>::Make(device, biases, buffers));
  ASSIGN_OR_RETURN(memory.allowed_tokens, Tokens::Make(device, allowed, buffers));
  ASSIGN_OR_RETURN(memory.outputs, device.Allocate(output_bytes));
  ASSIGN_OR_RETURN(memory.top_tokens, Tokens::Make(device, tops, buffers));
  ASSIGN_OR_RETURN(memory.top_logprobs, StagedArray<float>::Make(device, tops, buffers));
  ASSIGN_OR_RETURN(memory.host_outputs, device.AllocateHost(buffers * output_bytes));
  ASSIGN_OR_RETURN(memory.counts, device.Allocate(limits.num_slots * row_bytes));
  ASSIGN_OR_RETURN(memory.staged_counts, device.AllocateHost(kStagedRows * row_bytes));
  return memory;
}

Sampler::Sampler(Device& device, ops::Ops& ops, const step::StepLimits& limits,
                 SamplerMemory memory)
    : device_(device), ops_(ops), limits_(limits), memory_(std::move(memory)) {}

absl::StatusOr<std::unique_ptr<Sampler>> Sampler::Make(Device& device, ops::Ops& ops,
                                                       const step::StepLimits& limits) {
  ASSIGN_OR_RETURN(SamplerMemory memory, SamplerMemory::Make(device, limits));
  return std::unique_ptr<Sampler>(new Sampler(device, ops, limits, std::move(memory)));
}

int64_t Sampler::ScratchBytes(int64_t num_samples, int64_t vocabulary) {
  constexpr int64_t kAlignment = 64;
  return num_samples * vocabulary * int64_t{sizeof(float)} + kAlignment;
}

void Sampler::Upload(Lane& lane, const step::StepPlan& plan, const step::SlotTable& slots,
                     int32_t num_samples) {
  for (const step::SlotOpen& opened : plan.opened) {
    if (HasPenalty(opened.sampling)) CountTokens(lane, slots, opened.slot);
  }
  step_ = plan.id;
  num_biases_ = 0;
  num_allowed_ = 0;
  finder_.Reset(plan);
  for (size_t i = 0; i < plan.samples.size(); ++i) {
    const step::Sample& sample = plan.samples[i];
    memory_.specs.host(step_)[i] =
        SpecOf(sample, finder_.PositionOf(sample.token_index) + 1, slots.at(sample.slot));
  }
  ops::SampleSpec* const specs = memory_.specs.host(step_);
  std::fill(specs + plan.samples.size(), specs + num_samples,
            ops::SampleSpec{.kind = ops::SampleSpec::Kind::kSkip});
  memory_.specs.Upload(lane, step_, 0, num_samples);
  memory_.bias_tokens.Upload(lane, step_, 0, num_biases_);
  memory_.bias_values.Upload(lane, step_, 0, num_biases_);
  memory_.allowed_tokens.Upload(lane, step_, 0, num_allowed_);
}

// Only opening fills a row of the table; from then on the op counts what it draws.
void Sampler::CountTokens(Lane& lane, const step::SlotTable& slots, SlotId id) {
  const int64_t place = num_counted_++ % SamplerMemory::kStagedRows;
  LaneMark& passed = counts_uploaded_[static_cast<size_t>(place)];
  const absl::Status uploaded = lane.Wait(passed, MonotonicNow() + limits::kStepPatience);
  if (!uploaded.ok()) return lane.Fail(uploaded);
  const step::SlotTable::Slot& slot = slots.at(id);
  const int64_t row_bytes = limits_.vocabulary * int64_t{sizeof(uint32_t)};
  auto* const counts =
      static_cast<uint32_t*>(memory_.staged_counts.data()) + place * limits_.vocabulary;
  std::memset(counts, 0, static_cast<size_t>(row_bytes));
  for (int64_t i = 0; i < std::ssize(slot.tokens); ++i) {
    uint32_t& count = counts[slot.tokens[static_cast<size_t>(i)]];
    if (i < slot.num_prompt_tokens)
      count |= kInPrompt;
    else
      ++count;
  }
  auto* const row =
      static_cast<uint32_t*>(memory_.counts.data()) + int64_t{id.value} * limits_.vocabulary;
  device_.Upload(lane, counts, row_bytes, row);
  passed = lane.Mark();
}

ops::SampleSpec Sampler::SpecOf(const step::Sample& sample, int32_t position,
                                const step::SlotTable::Slot& slot) {
  const step::SamplingParams& p = slot.sampling;
  ops::SampleSpec spec;
  spec.slot = sample.slot.value;
  spec.position = position;
  spec.num_logprobs = p.num_logprobs;
  if (sample.kind != step::Sample::Kind::kDraw) {
    spec.kind = ops::SampleSpec::Kind::kScore;
    spec.target = sample.target;
    return spec;
  }
  spec.temperature = p.temperature;
  spec.top_k = p.top_k;
  spec.top_p = p.top_p;
  spec.min_p = p.min_p;
  spec.repetition_penalty = p.repetition_penalty;
  spec.presence_penalty = p.presence_penalty;
  spec.frequency_penalty = p.frequency_penalty;
  spec.seed = p.seed;
  spec.choice = p.choice;
  AppendLists(slot, spec);
  return spec;
}

void Sampler::AppendLists(const step::SlotTable::Slot& slot, ops::SampleSpec& spec) {
  const step::SamplingParams& p = slot.sampling;
  int32_t* const tokens = memory_.bias_tokens.host(step_);
  float* const values = memory_.bias_values.host(step_);
  spec.bias_begin = num_biases_;
  for (const auto& [token, bias] : p.logit_bias) {
    tokens[num_biases_] = token;
    values[num_biases_++] = bias;
  }
  const int32_t num_output_tokens = spec.position - slot.num_prompt_tokens;
  if (num_output_tokens < p.min_tokens) {
    for (const TokenId token : p.stop_tokens) {
      tokens[num_biases_] = token;
      values[num_biases_++] = -std::numeric_limits<float>::infinity();
    }
  }
  spec.bias_end = num_biases_;
  spec.only_listed = !p.allowed_tokens.empty();
  spec.allowed_begin = num_allowed_;
  for (const TokenId token : p.allowed_tokens)
    memory_.allowed_tokens.host(step_)[num_allowed_++] = token;
  spec.allowed_end = num_allowed_;
}

void Sampler::Sample(Lane& lane, Range samples, ConstTensorView logits) {
  const int64_t watermark = lane.SaveScratch();
  ops::SampleBatch batch;
  batch.num_samples = static_cast<int32_t>(samples.size());
  batch.vocabulary = limits_.vocabulary;
  batch.logits = logits;
  batch.specs = memory_.specs.device() + samples.begin;
  batch.host_specs = memory_.specs.host(step_) + samples.begin;
  batch.bias_tokens = memory_.bias_tokens.device();
  batch.bias_values = memory_.bias_values.device();
  batch.allowed_tokens = memory_.allowed_tokens.device();
  batch.token_counts = static_cast<uint32_t*>(memory_.counts.data());
  batch.outputs = static_cast<ops::SampleOutput*>(memory_.outputs.data()) + samples.begin;
  batch.top_tokens = memory_.top_tokens.device() + samples.begin * limits::kMaxLogprobs;
  batch.top_logprobs = memory_.top_logprobs.device() + samples.begin * limits::kMaxLogprobs;
  batch.workspace = lane.Scratch(DType::kF32, Shape{samples.size(), limits_.vocabulary});
  ops_.Sample(lane, batch);
  lane.RestoreScratch(watermark);
}

const ops::SampleOutput* Sampler::Download(Lane& lane, const step::StepPlan& plan) {
  const int64_t num_samples = std::ssize(plan.samples);
  const int64_t buffer = plan.id.value % NumStepBuffers(limits_.max_steps_in_flight);
  auto* const host = static_cast<ops::SampleOutput*>(memory_.host_outputs.data()) +
                     buffer * limits_.max_step_samples;
  if (num_samples == 0) return host;
  device_.Download(lane, outputs(), num_samples * int64_t{sizeof(ops::SampleOutput)}, host);
  const ops::SampleSpec* const specs = memory_.specs.host(plan.id);
  const bool wants_top = std::any_of(specs, specs + num_samples, [](const ops::SampleSpec& spec) {
    return spec.num_logprobs > 0;
  });
  if (wants_top) {
    memory_.top_tokens.Download(lane, plan.id, num_samples * limits::kMaxLogprobs);
    memory_.top_logprobs.Download(lane, plan.id, num_samples * limits::kMaxLogprobs);
  }
  return host;
}

std::vector<step::SampleResult> Sampler::ResultsOf(StepId step, int32_t num_samples) const {
  const int64_t buffer = step.value % NumStepBuffers(limits_.max_steps_in_flight);
  const auto* const outputs = static_cast<const ops::SampleOutput*>(memory_.host_outputs.data()) +
                              buffer * limits_.max_step_samples;
  std::vector<step::SampleResult> results(static_cast<size_t>(num_samples));
  for (int32_t i = 0; i < num_samples; ++i) {
    const ops::SampleSpec& spec = memory_.specs.host(step)[i];
    step::SampleResult& result = results[static_cast<size_t>(i)];
    result.finite = outputs[i].finite != 0;
    if (!result.finite) continue;
    result.token = outputs[i].token;
    result.logprob = outputs[i].logprob;
    result.rank = outputs[i].rank;
    const int32_t num_top = std::min(spec.num_logprobs, limits_.vocabulary);
    for (int32_t t = 0; t < num_top; ++t) {
      const int64_t place = int64_t{i} * limits::kMaxLogprobs + t;
      result.top.push_back(
          {memory_.top_tokens.host(step)[place], memory_.top_logprobs.host(step)[place]});
    }
  }
  return results;
}

}  // namespace polyreme::run
