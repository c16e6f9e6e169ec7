#include "coordinator/api/grpc_calls.h"

#include <utility>

#include "coordinator/api/proto_request.h"
#include "parallel/base/limits.h"
#include "parallel/base/log.h"
#include "parallel/base/out_of_memory.h"

namespace polyreme::api {

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  if (status.code() == absl::StatusCode::kInternal || status.code() == absl::StatusCode::kUnknown) {
    LogError("a call failed: {}", Message(status));
    return {grpc::StatusCode::INTERNAL, "internal error; the server's log says more"};
  }
  return {static_cast<grpc::StatusCode>(status.code()), Message(status)};
}

void GenerateCall::Start(const absl::Status& refusal) {
  self_ = shared_from_this();
  const bool fits = ++work_.num_calls <= limits::kMaxGrpcCalls;
  if (!refusal.ok()) return End(refusal);
  if (!fits)
    return End(ResourceExhausted("expected at most {} calls at once", limits::kMaxGrpcCalls));
  bool rejoins = false;
  const absl::Status looked_up = WithinMemory([&] { rejoins = Rejoins(); });
  if (!looked_up.ok()) return End(looked_up);
  if (rejoins) return;
  if (const absl::Status room = work_.context.backend.CheckRoom(); !room.ok()) return End(room);
  const absl::Status queued = WithinMemory([&] {
    return work_.context.pool.TryRun([self = shared_from_this()] {
      const absl::Status done = WithinMemory([&] { self->ParseAndSubmit(); });
      if (!done.ok()) self->End(done);
    });
  });
  if (queued.ok()) return;
  work_.context.metrics.RequestRefused("full");
  End(queued);
}

void GenerateCall::ParseAndSubmit() {
  {
    const std::lock_guard lock(mutex_);
    if (end_.has_value()) return;  // cancelled while it waited
  }
  const absl::StatusOr<std::shared_ptr<HttpResponder>> recorder = Admit();
  if (!recorder.ok()) return End(recorder.status());
  if (*recorder == nullptr && !key_id_.empty()) return;
  // Others may wait for the answer under the same key.
  const auto refuse = [&](const absl::Status& why) {
    return *recorder == nullptr ? End(why) : EndKept(why, **recorder);
  };
  absl::StatusOr<engine::GenerateRequest> parsed = FromProto(request_, work_.context);
  if (!parsed.ok()) {
    work_.context.metrics.RequestRefused("invalid");
    return refuse(parsed.status());
  }
  parsed->deadline = deadline_;
  const int32_t num_prompt_tokens = static_cast<int32_t>(parsed->prompt.size());
  absl::StatusOr<std::shared_ptr<engine::TokenStream>> stream =
      work_.context.backend.Submit(*std::move(parsed));
  if (!stream.ok()) return refuse(stream.status());
  if (*recorder != nullptr) return RunKept(*std::move(stream), num_prompt_tokens, *recorder);
  TakeFrom(OwnReplies(*std::move(stream), num_prompt_tokens), Hearing::kFirst);
}

void GenerateCall::TakeFrom(std::shared_ptr<ReplySource> replies, Hearing hearing) {
  bool is_late = false;
  {
    const std::lock_guard lock(mutex_);
    is_late = end_.has_value();
    replies_ = replies;
    if (!is_late && hearing == Hearing::kAgain) {
      context_->AddInitialMetadata("idempotent-replayed", "true");
    }
  }
  if (is_late) return replies->Cancel();
  replies->SetNotify([weak = weak_from_this()] {
    if (const std::shared_ptr<GenerateCall> alive = weak.lock()) alive->RequestPump();
  });
}

void GenerateCall::UnderKey(grpc::CallbackServerContext* context, std::string id) {
  context_ = context;
  key_id_ = std::move(id);
}

// The request without gRPC's own framing stands for the bytes of a body.
KeyedRequest GenerateCall::Keyed() const {
  return {.id = key_id_,
          .fingerprint =
              FingerprintOf("polyreme.v1.Generation/Generate", "", request_.SerializeAsString()),
          .overflow = KeptEnd(AnswerTooLargeToKeep())};
}

bool GenerateCall::Rejoins() {
  IdempotencyStore& store = work_.context.idempotency;
  if (key_id_.empty() || !store.Knows(key_id_)) return false;
  const auto replies = std::make_shared<KeptReplies>(work_.kept);
  const absl::StatusOr<bool> joined = store.Rejoin(Keyed(), replies);
  if (!joined.ok()) End(joined.status());
  if (joined.ok() && *joined) TakeFrom(replies, Hearing::kAgain);
  return !joined.ok() || *joined;
}

absl::StatusOr<std::shared_ptr<HttpResponder>> GenerateCall::Admit() {
  if (key_id_.empty()) return nullptr;
  const auto replies = std::make_shared<KeptReplies>(work_.kept);
  ASSIGN_OR_RETURN(std::shared_ptr<HttpResponder> recorder,
                   work_.context.idempotency.Admit(Keyed(), replies));
  TakeFrom(replies, recorder == nullptr ? Hearing::kAgain : Hearing::kFirst);
  return recorder;
}

// Takes no memory: whoever gives notice is the engine, which is not to fail for one client's sake.
void GenerateCall::RequestPump() noexcept {
  work_.pump.Give(std::shared_ptr<Errand>(shared_from_this(), &pump_));
}

void GenerateCall::PumpOrEnd() {
  const absl::Status pumped = WithinMemory([this] { Pump(); });
  if (!pumped.ok()) End(pumped);
}

void GenerateCall::Pump() {
  absl::Status end;
  bool writes = false;
  {
    const std::lock_guard lock(mutex_);
    if (is_writing_ || end_.has_value() || replies_ == nullptr) return;
    const ReplySource::Polled polled = replies_->Poll(reply_, end);
    if (polled == ReplySource::Polled::kNothingYet) return;
    writes = is_writing_ = polled == ReplySource::Polled::kReply;
  }
  if (writes) return StartWrite(&reply_);
  End(end);
}

void GenerateCall::OnWriteDone(bool ok) {
  std::optional<absl::Status> end;
  {
    const std::lock_guard lock(mutex_);
    is_writing_ = false;
    if (!ok && !end_.has_value()) end_ = Cancelled("the client is gone");
    end = end_;
  }
  if (end.has_value()) return End(*end);
  RequestPump();
}

void GenerateCall::OnCancel() {
  End(Cancelled("the client is gone"));
}

void GenerateCall::End(const absl::Status& status) {
  std::shared_ptr<ReplySource> replies;
  bool finishes = false;
  absl::Status end;
  {
    const std::lock_guard lock(mutex_);
    if (!end_.has_value()) end_ = status;
    end = *end_;
    replies = replies_;
    finishes = !is_writing_ && !has_finished_;
    has_finished_ |= finishes;
  }
  if (replies != nullptr && !end.ok()) replies->Cancel();
  if (finishes) Finish(ToGrpc(end));
}

void GenerateCall::OnDone() {
  --work_.num_calls;
  const std::shared_ptr<GenerateCall> last = std::move(self_);
}

void PoolCall::Run(TaskPool& pool, std::function<absl::Status()> compute) {
  const absl::Status queued = WithinMemory(
      [&] { return pool.TryRun([this, compute] { Finish(ToGrpc(WithinMemory(compute))); }); });
  if (!queued.ok()) Finish(ToGrpc(queued));
}

}  // namespace polyreme::api
