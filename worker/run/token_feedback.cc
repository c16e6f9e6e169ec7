#include "worker/run/token_feedback.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "parallel/base/clock.h"
#include "parallel/base/limits.h"
#include "parallel/comm/wait_board.h"

namespace polyreme::run {
namespace {

constexpr int kFirstStage = 0;  // ranks of the feedback transport's group
constexpr int kLastStage = 1;

constexpr int64_t kOutputWords = sizeof(ops::SampleOutput) / sizeof(int32_t);
static_assert(offsetof(ops::SampleOutput, token) == 0, "the token is the first word of an output");

// Steps that draw nothing feed nothing back; both ends see that in the plan.
bool HasDraws(const step::StepPlan& plan) {
  return std::any_of(plan.samples.begin(), plan.samples.end(), [](const step::Sample& sample) {
    return sample.kind == step::Sample::Kind::kDraw;
  });
}

}  // namespace

absl::StatusOr<FeedbackMemory> FeedbackMemory::Make(Device& device, const step::StepLimits& limits,
                                                    bool is_first, bool is_last) {
  FeedbackMemory memory;
  if (!is_first) return memory;
  const int64_t ring_bytes =
      RingSteps(limits) * limits.max_step_samples * int64_t{sizeof(ops::SampleOutput)};
  const int64_t token_bytes = limits.max_step_tokens * int64_t{sizeof(TokenId)};
  const int32_t buffers = NumStepBuffers(limits.max_steps_in_flight);
  ASSIGN_OR_RETURN(memory.source, device.Allocate(ring_bytes + token_bytes));
  ASSIGN_OR_RETURN(memory.plan_tokens, device.AllocateHost(buffers * token_bytes));
  ASSIGN_OR_RETURN(memory.places,
                   StagedArray<int32_t>::Make(device, limits.max_step_tokens, buffers));
  if (is_last) return memory;
  ASSIGN_OR_RETURN(memory.received, device.AllocateHost(ring_bytes));
  return memory;
}

TokenFeedback::TokenFeedback(const Parts& parts, const step::StepLimits& limits)
    : parts_(parts),
      limits_(limits),
      is_first_(parts.group->place().stage == 0),
      is_last_(parts.group->place().stage == parts.group->pipeline().size() - 1),
      ring_steps_(FeedbackMemory::RingSteps(limits)),
      parcels_(static_cast<size_t>(limits.max_steps_in_flight)) {}

absl::StatusOr<std::unique_ptr<TokenFeedback>> TokenFeedback::Make(const Parts& parts,
                                                                   const step::StepLimits& limits) {
  auto feedback = std::unique_ptr<TokenFeedback>(new TokenFeedback(parts, limits));
  ASSIGN_OR_RETURN(
      feedback->memory_,
      FeedbackMemory::Make(*parts.device, limits, feedback->is_first_, feedback->is_last_));
  if (feedback->memory_.received.bytes() > 0) {
    feedback->expected_.resize(static_cast<size_t>(feedback->ring_steps_));
  }
  if (feedback->is_first_ != feedback->is_last_) {
    TokenFeedback* const self = feedback.get();
    self->courier_ =
        std::thread([self] { self->is_first_ ? self->ReceiveAll() : self->SendAll(); });
  }
  return feedback;
}

TokenFeedback::~TokenFeedback() {
  parcels_.Close(Cancelled("the feedback has ended"));
  if (courier_.joinable()) courier_.join();
}

int32_t TokenFeedback::PlaceOf(const step::TokenSource& source) const {
  return static_cast<int32_t>((FirstOutputOf(source.step) + source.sample) * kOutputWords);
}

void TokenFeedback::Fetch(const step::StepPlan& plan, int32_t num_tokens, int32_t* tokens) {
  if (!is_first_) return;
  if (!is_last_) Expect(plan);
  const int64_t ring_words = ring_steps_ * limits_.max_step_samples * kOutputWords;
  int32_t* const places = memory_.places.host(plan.id);
  for (int32_t i = 0; i < num_tokens; ++i) places[i] = static_cast<int32_t>(ring_words) + i;
  int64_t first = 0;
  for (const step::StepRow& row : plan.rows) {
    if (row.first_token.has_value()) {
      if (!is_last_ && !BringToDevice(row.first_token->step)) return;
      places[first] = PlaceOf(*row.first_token);
      num_fed_back_.fetch_add(1, std::memory_order_relaxed);
    }
    first += row.num_tokens;
  }
  const int64_t buffer = plan.id.value % NumStepBuffers(limits_.max_steps_in_flight);
  auto* const staged =
      static_cast<TokenId*>(memory_.plan_tokens.data()) + buffer * limits_.max_step_tokens;
  std::fill(std::copy(plan.tokens.begin(), plan.tokens.end(), staged), staged + num_tokens, 0);
  auto* const words = static_cast<int32_t*>(memory_.source.data());
  parts_.device->Upload(*parts_.lane, staged, num_tokens * int64_t{sizeof(TokenId)},
                        words + ring_words);
  memory_.places.Upload(*parts_.lane, plan.id, 0, num_tokens);
  parts_.ops->GatherRows(*parts_.lane,
                         {words, DType::kI32, Shape{ring_words + limits_.max_step_tokens, 1}},
                         memory_.places.device(), {tokens, DType::kI32, Shape{num_tokens, 1}});
}

void TokenFeedback::Expect(const step::StepPlan& plan) {
  {
    const std::lock_guard lock(mutex_);
    if (last_received_ < last_expected_) num_overlapped_.fetch_add(1, std::memory_order_relaxed);
  }
  if (!HasDraws(plan)) return;
  last_expected_ = plan.id;
  expected_[static_cast<size_t>(RingIndex(plan.id))] = {plan.id, std::ssize(plan.samples), false};
  const absl::Status pushed = parcels_.Push({plan.id, std::ssize(plan.samples), {}, nullptr},
                                            MonotonicNow() + limits::kCollectivePatience);
  if (!pushed.ok()) parts_.lane->Fail(pushed);
}

bool TokenFeedback::BringToDevice(StepId step) {
  Expected& expected = expected_[static_cast<size_t>(RingIndex(step))];
  CHECK(expected.step == step, "step {} is not in the ring", step.value);
  if (expected.on_device) return true;
  if (!AwaitStep(step)) return false;
  parts_.device->Upload(
      *parts_.lane, static_cast<ops::SampleOutput*>(memory_.received.data()) + FirstOutputOf(step),
      expected.num_samples * int64_t{sizeof(ops::SampleOutput)}, OutputsOf(step));
  expected.on_device = true;
  return true;
}

bool TokenFeedback::AwaitStep(StepId step) {
  const absl::Time begin = MonotonicNow();
  const uint64_t record = parts_.recorder == nullptr
                              ? 0
                              : parts_.recorder->BeginOperation({trace::FlightKind::kAwaitTokens,
                                                                 trace::FlightGroup::kPipeline,
                                                                 kLastStage, step.value});
  comm::ProcessGroup& group = *parts_.group;
  comm::WaitBoard* const board = group.wait_board();
  if (board != nullptr) {
    board->WaitFor((group.pipeline().size() - 1) * group.tensor().size() + group.place().shard);
  }
  std::unique_lock lock(mutex_);
  const bool woken = arrived_.wait_until(lock, ToSteady(begin + limits::kCollectivePatience), [&] {
    return courier_gave_up_ || last_received_ >= step;
  });
  const bool here = last_received_ >= step;
  lock.unlock();
  if (board != nullptr) board->Moved();
  waiting_ns_ += absl::ToInt64Nanoseconds(MonotonicNow() - begin);
  if (parts_.recorder != nullptr) {
    parts_.recorder->MarkOperation(
        record, here ? trace::FlightState::kFinished : trace::FlightState::kFailed);
  }
  if (!woken) {
    parts_.lane->Fail(DeadlineExceeded("the tokens of step {} did not come back within {}",
                                       step.value,
                                       absl::FormatDuration(limits::kCollectivePatience)));
  }
  return here;
}

void TokenFeedback::Publish(const step::StepPlan& plan, const ops::SampleOutput* outputs,
                            const ops::SampleOutput* host_outputs) {
  if (!is_last_ || !HasDraws(plan)) return;
  if (is_first_) {
    return parts_.device->Copy(*parts_.lane, outputs,
                               std::ssize(plan.samples) * int64_t{sizeof(ops::SampleOutput)},
                               OutputsOf(plan.id));
  }
  const absl::Status pushed =
      parcels_.Push({plan.id, std::ssize(plan.samples), parts_.lane->Mark(), host_outputs},
                    MonotonicNow() + limits::kCollectivePatience);
  if (!pushed.ok()) parts_.lane->Fail(pushed);
}

void TokenFeedback::ReceiveAll() {
  std::vector<std::byte> message;
  message.reserve(sizeof(Header) +
                  static_cast<size_t>(limits_.max_step_samples) * sizeof(ops::SampleOutput));
  absl::Status status;
  while (status.ok()) {
    const absl::StatusOr<Parcel> parcel = parcels_.Pop(absl::InfiniteFuture());
    if (!parcel.ok()) return;  // closed
    status = Receive(*parcel, message);
    const std::lock_guard lock(mutex_);
    if (status.ok())
      last_received_ = parcel->step;
    else
      courier_gave_up_ = true;
    arrived_.notify_all();
  }
  parts_.lane->Fail(status);
  parcels_.Close(status);
}

absl::Status TokenFeedback::Receive(const Parcel& parcel, std::vector<std::byte>& message) {
  const size_t bytes = static_cast<size_t>(parcel.num_samples) * sizeof(ops::SampleOutput);
  message.resize(sizeof(Header) + bytes);
  RETURN_IF_ERROR(parts_.group->feedback().Receive(kLastStage, absl::MakeSpan(message),
                                                   MonotonicNow() + limits::kCollectivePatience));
  Header header;
  std::memcpy(&header, message.data(), sizeof header);
  if (header.step != parcel.step.value || header.num_samples != parcel.num_samples) {
    return DataLoss("expected {} tokens of step {} from the last stage, got {} of step {}",
                    parcel.num_samples, parcel.step.value, header.num_samples, header.step);
  }
  std::memcpy(static_cast<ops::SampleOutput*>(memory_.received.data()) + FirstOutputOf(parcel.step),
              message.data() + sizeof header, bytes);
  return absl::OkStatus();
}

void TokenFeedback::SendAll() {
  std::vector<std::byte> message;
  message.reserve(sizeof(Header) +
                  static_cast<size_t>(limits_.max_step_samples) * sizeof(ops::SampleOutput));
  absl::Status status;
  while (status.ok()) {
    const absl::StatusOr<Parcel> parcel = parcels_.Pop(absl::InfiniteFuture());
    if (!parcel.ok()) return;  // closed
    status = Send(*parcel, message);
  }
  parts_.lane->Fail(status);
  parcels_.Close(status);
}

absl::Status TokenFeedback::Send(const Parcel& parcel, std::vector<std::byte>& message) {
  RETURN_IF_ERROR(parts_.lane->Wait(parcel.computed, MonotonicNow() + limits::kStepPatience));
  const Header header{parcel.step.value, parcel.num_samples};
  const size_t bytes = static_cast<size_t>(parcel.num_samples) * sizeof(ops::SampleOutput);
  message.resize(sizeof header + bytes);
  std::memcpy(message.data(), &header, sizeof header);
  std::memcpy(message.data() + sizeof header, parcel.host_outputs, bytes);
  return parts_.group->feedback().Send(kFirstStage, message,
                                       MonotonicNow() + limits::kCollectivePatience);
}

}  // namespace polyreme::run
