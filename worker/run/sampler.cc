#include "worker/run/sampler.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "parallel/base/clock.h"
#include "parallel/base/limits.h"

namespace polyreme::run {
namespace {

constexpr uint32_t kInPrompt = uint32_t{1} << 31;  // ops::SampleBatch::token_counts

bool HasPenalty(const step::SamplingParams& p) {
  return p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

}  // namespace

Sampler::Sampler(Device& device, ops::Ops& ops, const step::StepLimits& limits)
    : device_(device), ops_(ops), limits_(limits) {}

absl::StatusOr<std::unique_ptr<Sampler>> Sampler::Make(Device& device, ops::Ops& ops,
                                                       const step::StepLimits& limits) {
  auto sampler = std::unique_ptr<Sampler>(new Sampler(device, ops, limits));
  RETURN_IF_ERROR(sampler->Allocate());
  return sampler;
}

absl::Status Sampler::Allocate() {
  const int32_t buffers = NumStepBuffers(limits_.max_steps_in_flight);
  const int64_t samples = limits_.max_step_samples;
  // A slot draws once in a step, and only draws have lists.
  const int64_t draws = std::min(samples, int64_t{limits_.num_slots});
  const int64_t biases = draws * (limits::kMaxLogitBias + limits::kMaxStopTokens);
  const int64_t allowed = draws * limits::kMaxAllowedTokens;
  const int64_t tops = samples * limits::kMaxLogprobs;
  const int64_t row_bytes = limits_.vocabulary * int64_t{sizeof(uint32_t)};
  using Tokens = StagedArray<int32_t>;
  ASSIGN_OR_RETURN(specs_, StagedArray<ops::SampleSpec>::Make(device_, samples, buffers));
  ASSIGN_OR_RETURN(bias_tokens_, Tokens::Make(device_, biases, buffers));
  ASSIGN_OR_RETURN(bias_values_, StagedArray<float>::Make(device_, biases, buffers));
  ASSIGN_OR_RETURN(allowed_tokens_, Tokens::Make(device_, allowed, buffers));
  ASSIGN_OR_RETURN(top_tokens_, Tokens::Make(device_, tops, buffers));
  ASSIGN_OR_RETURN(top_logprobs_, StagedArray<float>::Make(device_, tops, buffers));
  ASSIGN_OR_RETURN(host_outputs_,
                   device_.AllocateHost(buffers * samples * int64_t{sizeof(ops::SampleOutput)}));
  ASSIGN_OR_RETURN(counts_, device_.Allocate(limits_.num_slots * row_bytes));
  ASSIGN_OR_RETURN(staged_counts_, device_.AllocateHost(row_bytes));
  return absl::OkStatus();
}

int64_t Sampler::ScratchBytes(int64_t num_samples, int64_t vocabulary) {
  constexpr int64_t kAlignment = 64;
  return num_samples * vocabulary * int64_t{sizeof(float)} + kAlignment;
}

void Sampler::Upload(Lane& lane, const step::StepPlan& plan, const step::SlotTable& slots) {
  for (const step::SlotOpen& opened : plan.opened) {
    if (HasPenalty(opened.sampling)) CountTokens(lane, slots, opened.slot);
  }
  step_ = plan.id;
  num_biases_ = 0;
  num_allowed_ = 0;
  finder_.Reset(plan);
  for (size_t i = 0; i < plan.samples.size(); ++i) {
    const step::Sample& sample = plan.samples[i];
    specs_.host(step_)[i] =
        SpecOf(sample, finder_.PositionOf(sample.token_index) + 1, slots.at(sample.slot));
  }
  specs_.Upload(lane, step_, 0, std::ssize(plan.samples));
  bias_tokens_.Upload(lane, step_, 0, num_biases_);
  bias_values_.Upload(lane, step_, 0, num_biases_);
  allowed_tokens_.Upload(lane, step_, 0, num_allowed_);
}

// Only opening fills a row of the table; from then on the op counts what it draws.
void Sampler::CountTokens(Lane& lane, const step::SlotTable& slots, SlotId id) {
  const absl::Status uploaded = lane.Wait(counts_uploaded_, MonotonicNow() + limits::kStepPatience);
  if (!uploaded.ok()) return lane.Fail(uploaded);
  const step::SlotTable::Slot& slot = slots.at(id);
  auto* const counts = static_cast<uint32_t*>(staged_counts_.data());
  std::memset(counts, 0, static_cast<size_t>(staged_counts_.bytes()));
  for (int64_t i = 0; i < std::ssize(slot.tokens); ++i) {
    uint32_t& count = counts[slot.tokens[static_cast<size_t>(i)]];
    if (i < slot.num_prompt_tokens)
      count |= kInPrompt;
    else
      ++count;
  }
  auto* const row = static_cast<uint32_t*>(counts_.data()) + int64_t{id.value} * limits_.vocabulary;
  device_.Upload(lane, counts, staged_counts_.bytes(), row);
  counts_uploaded_ = lane.Mark();
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
  int32_t* const tokens = bias_tokens_.host(step_);
  float* const values = bias_values_.host(step_);
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
  for (const TokenId token : p.allowed_tokens) allowed_tokens_.host(step_)[num_allowed_++] = token;
  spec.allowed_end = num_allowed_;
}

void Sampler::Sample(Lane& lane, Range samples, ConstTensorView logits,
                     ops::SampleOutput* outputs) {
  const int64_t watermark = lane.SaveScratch();
  ops::SampleBatch batch;
  batch.num_samples = static_cast<int32_t>(samples.size());
  batch.vocabulary = limits_.vocabulary;
  batch.logits = logits;
  batch.specs = specs_.device() + samples.begin;
  batch.host_specs = specs_.host(step_) + samples.begin;
  batch.bias_tokens = bias_tokens_.device();
  batch.bias_values = bias_values_.device();
  batch.allowed_tokens = allowed_tokens_.device();
  batch.token_counts = static_cast<uint32_t*>(counts_.data());
  batch.outputs = outputs + samples.begin;
  batch.top_tokens = top_tokens_.device() + samples.begin * limits::kMaxLogprobs;
  batch.top_logprobs = top_logprobs_.device() + samples.begin * limits::kMaxLogprobs;
  batch.workspace = lane.Scratch(DType::kF32, Shape{samples.size(), limits_.vocabulary});
  ops_.Sample(lane, batch);
  lane.RestoreScratch(watermark);
}

const ops::SampleOutput* Sampler::Download(Lane& lane, const step::StepPlan& plan,
                                           const ops::SampleOutput* outputs) {
  const int64_t num_samples = std::ssize(plan.samples);
  const int64_t buffer = plan.id.value % NumStepBuffers(limits_.max_steps_in_flight);
  auto* const host =
      static_cast<ops::SampleOutput*>(host_outputs_.data()) + buffer * limits_.max_step_samples;
  device_.Download(lane, outputs, num_samples * int64_t{sizeof(ops::SampleOutput)}, host);
  const ops::SampleSpec* const specs = specs_.host(plan.id);
  const bool wants_top = std::any_of(specs, specs + num_samples, [](const ops::SampleSpec& spec) {
    return spec.num_logprobs > 0;
  });
  if (wants_top) {
    top_tokens_.Download(lane, plan.id, num_samples * limits::kMaxLogprobs);
    top_logprobs_.Download(lane, plan.id, num_samples * limits::kMaxLogprobs);
  }
  return host;
}

std::vector<step::SampleResult> Sampler::ResultsOf(StepId step, int32_t num_samples) const {
  const int64_t buffer = step.value % NumStepBuffers(limits_.max_steps_in_flight);
  const auto* const outputs = static_cast<const ops::SampleOutput*>(host_outputs_.data()) +
                              buffer * limits_.max_step_samples;
  std::vector<step::SampleResult> results(static_cast<size_t>(num_samples));
  for (int32_t i = 0; i < num_samples; ++i) {
    const ops::SampleSpec& spec = specs_.host(step)[i];
    step::SampleResult& result = results[static_cast<size_t>(i)];
    result.finite = outputs[i].finite != 0;
    if (!result.finite) continue;
    result.token = outputs[i].token;
    result.logprob = outputs[i].logprob;
    result.rank = outputs[i].rank;
    const int32_t num_top = std::min(spec.num_logprobs, limits_.vocabulary);
    for (int32_t t = 0; t < num_top; ++t) {
      const int64_t place = int64_t{i} * limits::kMaxLogprobs + t;
      result.top.push_back({top_tokens_.host(step)[place], top_logprobs_.host(step)[place]});
    }
  }
  return results;
}

}  // namespace polyreme::run
