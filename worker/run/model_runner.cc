#include "worker/run/model_runner.h"

#include <algorithm>
#include <utility>

#include "parallel/base/clock.h"
#include "parallel/base/limits.h"

namespace polyreme::run {
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
  RETURN_IF_ERROR(runner->Record());
  return runner;
}

StepShape ModelRunner::LargestStep() const {
  return {.spec = parts_.weights->spec,
          .shard = parts_.weights->shard,
          .shards = parts_.group->tensor().size(),
          .limits = options_.limits,
          .activations = parts_.backend->ops().activation_dtype(),
          .kv_dtype = parts_.cache->Layer(0).keys.dtype,
          .head_chunk_samples = options_.head_chunk_samples};
}

ops::Workload ModelRunner::WorkloadWithProducts() const {
  const StepShape shape = LargestStep();
  ops::Workload workload = WorkloadOf(shape);
  for (const weights::LayerWeights& layer : parts_.weights->layers) {
    for (const weights::Weight* weight :
         {&layer.qkv, &layer.attention_out, &layer.gate_up, &layer.down}) {
      workload.products.push_back({weight, shape.limits.max_step_tokens, shape.activations});
    }
  }
  if (IsLastStage()) {
    workload.products.push_back({&parts_.weights->head(), shape.HeadChunk(), DType::kF32});
  }
  return workload;
}

absl::Status ModelRunner::Allocate() {
  Device& device = parts_.backend->device();
  ops::Ops& ops = parts_.backend->ops();
  const StepShape shape = LargestStep();
  memory_ = StepMemoryOf(shape, ops.WorkspaceBytes(WorkloadOf(shape)));
  padding_ = StepPadding(device, options_.limits);
  const model::Tools tools{&ops, &parts_.group->tensor()};
  ASSIGN_OR_RETURN(model_, model::MakeModel(*parts_.weights, tools, {shape.HeadChunk()}));
  ASSIGN_OR_RETURN(lane_, device.MakeLane(memory_.arena_bytes));
  // Peers that wait in a collective for this rank fail with it instead of hanging.
  lane_->SetFailureHook([group = parts_.group](const absl::Status& why) { group->Abort(why); });
  ASSIGN_OR_RETURN(StepInputs inputs, StepInputs::Make(device, options_.limits));
  inputs_ = std::make_unique<StepInputs>(std::move(inputs));
  if (IsLastStage()) {
    ASSIGN_OR_RETURN(sampler_, Sampler::Make(device, ops, options_.limits));
  }
  ASSIGN_OR_RETURN(feedback_,
                   TokenFeedback::Make({&device, &ops, lane_.get(), parts_.group, parts_.recorder},
                                       options_.limits));
  RETURN_IF_ERROR(ops.Prepare(*lane_, WorkloadWithProducts()));
  // Last of what can fail on one rank alone: the communicators hold the arena from here on.
  return parts_.group->tensor().UseArena(lane_->arena());
}

absl::Status ModelRunner::Record() {
  const std::vector<int32_t>& rows = padding_.rows();
  Device& device = parts_.backend->device();
  // A device with communicators of its own has libraries that load when they are first used.
  if (rows.empty() && parts_.backend->communicators() == nullptr) return absl::OkStatus();
  const absl::Time begin = MonotonicNow();
  const step::StepPlan longest = LongestPlan();
  RETURN_IF_ERROR(RunAndWait(longest, StepPadding().SizeOf(longest)));
  for (auto n = rows.rbegin(); n != rows.rend(); ++n) {
    RETURN_IF_ERROR(RunAndWait({.id = StepId{0}}, {*n, *n, *n, /*recorded=*/false}));
  }
  const int64_t free_before = device.FreeBytes();
  // The largest first: what it takes while it is recorded serves the smaller ones too.
  for (auto n = rows.rbegin(); n != rows.rend(); ++n) {
    RETURN_IF_ERROR(RunAndWait({.id = StepId{0}}, {*n, *n, *n, /*recorded=*/true}));
  }
  recording_ = {std::max<int64_t>(0, free_before - device.FreeBytes()), MonotonicNow() - begin,
                static_cast<int32_t>(rows.size())};
  return absl::OkStatus();
}

absl::Status ModelRunner::RunAndWait(const step::StepPlan& plan, const StepSize& size) {
  Run(plan, size);
  return lane_->Wait(lane_->Mark(), MonotonicNow() + limits::kStepPatience);
}

// As many prompt tokens as a step may have. No slot is open and every entry of the block table
// still names block 0, whose contents nobody will read before writing them.
step::StepPlan ModelRunner::LongestPlan() const {
  const step::StepLimits& limits = options_.limits;
  step::StepPlan plan{.id = StepId{0}};
  int32_t left = limits.max_step_tokens;
  for (int32_t slot = 0; slot < limits.num_slots && left > 0; ++slot) {
    const int32_t num_tokens = std::min(left, limits.max_model_len);
    plan.rows.push_back({SlotId{slot}, 0, num_tokens, {}});
    left -= num_tokens;
  }
  plan.tokens.assign(static_cast<size_t>(limits.max_step_tokens - left), TokenId{0});
  return plan;
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

void ModelRunner::MarkStep(uint64_t record, trace::FlightState state) const {
  if (parts_.recorder != nullptr) parts_.recorder->MarkStep(record, state);
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
  const uint64_t record =
      parts_.recorder == nullptr ? 0 : parts_.recorder->BeginStep(plan.id, std::ssize(plan.tokens));
  slots_.Apply(plan);
  Run(plan, padding_.SizeOf(plan));
  const absl::Duration waiting = Waiting() - waited;
  const InFlight step{plan.id,
                      lane_->Mark(),
                      static_cast<int32_t>(plan.samples.size()),
                      MonotonicNow() - begin - waiting,
                      waiting,
                      record};
  const absl::Status status = lane_->status();
  MarkStep(record, status.ok() ? trace::FlightState::kEnqueued : trace::FlightState::kFailed);
  {
    const std::lock_guard lock(mutex_);
    in_flight_[static_cast<size_t>(num_enqueued_++) % in_flight_.size()] = step;
    ++stats_.steps;
    stats_.tokens += std::ssize(plan.tokens);
    stats_.max_steps_in_flight =
        std::max(stats_.max_steps_in_flight, static_cast<int32_t>(num_enqueued_ - num_collected_));
  }
  return status;
}

void ModelRunner::Run(const step::StepPlan& plan, const StepSize& size) {
  lane_->Rewind();  // whoever still reads scratch is on the lane too
  ops::Ops& ops = parts_.backend->ops();
  const ops::StepBatch batch = inputs_->Upload(*lane_, plan, slots_, size);
  if (IsLastStage()) sampler_->Upload(*lane_, plan, slots_, size.num_samples);
  feedback_->Fetch(plan, size.num_tokens, inputs_->tokens());
  parts_.cache->Copy(*lane_, ops, inputs_->moves(), static_cast<int32_t>(plan.copies.size()));
  if (batch.num_tokens == 0) return;  // only slots or copies; every rank sees that alike
  ops.PrepareAttention(*lane_, batch, model_.layers->heads());
  const ReplayKey key{size.num_tokens, size.num_samples, size.recorded};
  lane_->Replay(key, [&] { ForwardStage(batch); });
  if (IsLastStage()) {
    feedback_->Publish(plan, sampler_->outputs(), sampler_->Download(*lane_, plan));
  }
}

void ModelRunner::ForwardStage(const ops::StepBatch& batch) {
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
      sampler_->Sample(lane, samples, logits);
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
    MarkStep(oldest.record, trace::FlightState::kFailed);
    return Annotate(reached, fmt::format("rank {}, step {}", rank_.value, step.value));
  }
  MarkStep(oldest.record, trace::FlightState::kFinished);
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
