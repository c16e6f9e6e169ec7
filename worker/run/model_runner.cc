#include "worker/run/model_runner.h"

#include <algorithm>
#include <utility>

#include "parallel/base/clock.h"

namespace polyreme::run {
namespace {

ReplayKey KeyOf(const ops::StepBatch& batch) {
  return {batch.num_tokens, batch.num_samples, batch.num_tokens == batch.num_rows};
}

}  // namespace

int64_t StepScratchBytes(const model::Model& model, const plan::ModelSpec& spec, DType activations,
                         const ModelRunner::Options& options) {
  constexpr int64_t kAlignment = 64;
  const int64_t num_tokens = options.limits.max_step_tokens;
  const int64_t hidden = num_tokens * spec.width * SizeOf(activations) + kAlignment;
  const int64_t layers = model.layers->ScratchBytes(num_tokens);
  // Embedding and head run before and after the layers, in the same memory; the embedding's sum
  // needs none.
  int64_t head = 0;
  if (model.head.has_value()) {
    head = model.head->ScratchBytes() +
           Sampler::ScratchBytes(options.head_chunk_samples, options.limits.vocabulary);
  }
  return hidden + std::max(layers, head);
}

ModelRunner::ModelRunner(const Parts& parts, const Options& options)
    : parts_(parts),
      options_(options),
      place_(parts.group->place()),
      num_stages_(parts.group->pipeline().size()),
      rank_{place_.stage * parts.group->tensor().size() + place_.shard},
      slots_(options.limits),
      validator_(options.limits),
      in_flight_(static_cast<size_t>(options.limits.max_steps_in_flight)) {}

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Make(const Parts& parts,
                                                               const Options& options) {
  CHECK(options.limits.max_steps_in_flight > 0 && options.head_chunk_samples > 0);
  auto runner = std::unique_ptr<ModelRunner>(new ModelRunner(parts, options));
  RETURN_IF_ERROR(runner->Allocate());
  return runner;
}

absl::Status ModelRunner::Allocate() {
  Device& device = parts_.backend->device();
  ops::Ops& ops = parts_.backend->ops();
  const model::Tools tools{&ops, &parts_.group->tensor()};
  options_.head_chunk_samples =
      std::min<int64_t>(options_.head_chunk_samples, options_.limits.max_step_samples);
  ASSIGN_OR_RETURN(model_, model::MakeModel(*parts_.weights, tools, {options_.head_chunk_samples}));
  scratch_bytes_ = StepScratchBytes(model_, parts_.weights->spec, ops.activation_dtype(), options_);
  ASSIGN_OR_RETURN(lane_, device.MakeLane(scratch_bytes_));
  // Peers that wait in a collective for this rank fail with it instead of hanging.
  lane_->SetFailureHook([group = parts_.group](const absl::Status& why) { group->Abort(why); });
  ASSIGN_OR_RETURN(StepInputs inputs, StepInputs::Make(device, options_.limits));
  inputs_ = std::make_unique<StepInputs>(std::move(inputs));
  if (IsLastStage()) {
    ASSIGN_OR_RETURN(sampler_, Sampler::Make(device, ops, options_.limits));
  }
  ASSIGN_OR_RETURN(
      feedback_, TokenFeedback::Make({&device, &ops, lane_.get(), parts_.group}, options_.limits));
  return absl::OkStatus();
}

ModelRunner::~ModelRunner() {
  if (lane_ != nullptr && num_enqueued_ != num_collected_) {
    lane_->Fail(Cancelled("rank {}: the runner ended with steps in flight", rank_.value));
  }
}

absl::Status ModelRunner::CheckRoom() const {
  const std::lock_guard lock(mutex_);
  if (num_enqueued_ - num_collected_ < options_.limits.max_steps_in_flight) return absl::OkStatus();
  return ResourceExhausted("expected at most {} steps in flight",
                           options_.limits.max_steps_in_flight);
}

absl::Duration ModelRunner::Waiting() const {
  return parts_.group->tensor().stats().waiting + parts_.group->pipeline().stats().waiting +
         feedback_->waiting();
}

absl::Status ModelRunner::Enqueue(const step::StepPlan& plan) {
  RETURN_IF_ERROR(lane_->status());
  if (plan.epoch != options_.epoch) {
    return InvalidArgument("step {}: expected epoch {}, got {}", plan.id.value,
                           options_.epoch.value, plan.epoch.value);
  }
  RETURN_IF_ERROR(validator_.Check(plan, slots_));
  RETURN_IF_ERROR(CheckRoom());
  const absl::Time begin = MonotonicNow();
  const absl::Duration waited = Waiting();
  slots_.Apply(plan);
  Run(plan);
  const absl::Duration waiting = Waiting() - waited;
  const InFlight step{plan.id, lane_->Mark(), static_cast<int32_t>(plan.samples.size()),
                      MonotonicNow() - begin - waiting, waiting};
  {
    const std::lock_guard lock(mutex_);
    in_flight_[static_cast<size_t>(num_enqueued_++) % in_flight_.size()] = step;
    ++stats_.steps;
    stats_.tokens += std::ssize(plan.tokens);
    stats_.max_steps_in_flight =
        std::max(stats_.max_steps_in_flight, static_cast<int32_t>(num_enqueued_ - num_collected_));
  }
  return lane_->status();
}

void ModelRunner::Run(const step::StepPlan& plan) {
  lane_->Rewind();  // whoever still reads scratch is on the lane too
  ops::Ops& ops = parts_.backend->ops();
  const ops::StepBatch batch = inputs_->Upload(*lane_, plan, slots_);
  if (IsLastStage()) sampler_->Upload(*lane_, plan, slots_);
  feedback_->Fetch(plan, inputs_->tokens());
  parts_.cache->Copy(*lane_, ops, inputs_->moves(), static_cast<int32_t>(plan.copies.size()));
  if (batch.num_tokens == 0) return;  // only slots or copies; every rank sees that alike
  ops::SampleOutput* const outputs = IsLastStage() ? feedback_->OutputsOf(plan.id) : nullptr;
  ops.PrepareAttention(*lane_, batch, model_.layers->heads());
  lane_->Replay(KeyOf(batch), [&] { ForwardStage(batch, outputs); });
  if (IsLastStage()) feedback_->Publish(plan, sampler_->Download(*lane_, plan, outputs));
}

void ModelRunner::ForwardStage(const ops::StepBatch& batch, ops::SampleOutput* outputs) {
  Lane& lane = *lane_;
  const TensorView hidden = lane.Scratch(parts_.backend->ops().activation_dtype(),
                                         Shape{batch.num_tokens, parts_.weights->spec.width});
  comm::Communicator& pipeline = parts_.group->pipeline();
  if (IsFirstStage()) {
    model_.embedding->Apply(lane, batch, hidden);
  } else {
    const comm::Communicator::Incoming from{hidden, place_.stage - 1};
    pipeline.Exchange(lane, {}, {&from, 1});
  }
  model_.layers->Forward(lane, batch, *parts_.cache, hidden);
  if (!IsLastStage()) {
    const comm::Communicator::Outgoing to{hidden, place_.stage + 1};
    pipeline.Exchange(lane, {&to, 1}, {});
  } else if (batch.num_samples > 0) {
    model_.head->Apply(lane, batch, hidden, [&](Range samples, ConstTensorView logits) {
      sampler_->Sample(lane, samples, logits, outputs);
    });
  }
}

absl::StatusOr<step::StepResult> ModelRunner::Collect(StepId step, absl::Time deadline) {
  InFlight oldest;
  {
    const std::lock_guard lock(mutex_);
    CHECK(num_collected_ < num_enqueued_, "step {} was never enqueued", step.value);
    oldest = in_flight_[static_cast<size_t>(num_collected_) % in_flight_.size()];
  }
  CHECK(oldest.id == step, "step {} is collected before step {}", step.value, oldest.id.value);
  if (absl::Status reached = lane_->Wait(oldest.mark, deadline); !reached.ok()) {
    return Annotate(reached, fmt::format("rank {}, step {}", rank_.value, step.value));
  }
  step::StepResult result{step, options_.epoch, {}, {{rank_, oldest.busy, oldest.waiting}}};
  if (Answers()) result.samples = sampler_->ResultsOf(step, oldest.num_samples);
  // From here on the step's staging may be used again.
  const std::lock_guard lock(mutex_);
  ++num_collected_;
  return result;
}

RunnerStats ModelRunner::stats() const {
  const std::lock_guard lock(mutex_);
  RunnerStats stats = stats_;
  stats.fed_back_tokens = feedback_->num_fed_back();
  stats.overlapped_steps = feedback_->num_overlapped();
  return stats;
}

}  // namespace polyreme::run
