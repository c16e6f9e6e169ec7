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
  absl::StatusOr<engine::GenerateRequest> parsed = FromProto(request_, work_.context);
  if (!parsed.ok()) {
    work_.context.metrics.RequestRefused("invalid");
    return End(parsed.status());
  }
  parsed->deadline = deadline_;
  const int32_t num_prompt_tokens = static_cast<int32_t>(parsed->prompt.size());
  absl::StatusOr<std::shared_ptr<engine::TokenStream>> stream =
      work_.context.backend.Submit(*std::move(parsed));
  if (!stream.ok()) return End(stream.status());
  bool is_late = false;
  {
    const std::lock_guard lock(mutex_);
    is_late = end_.has_value();
    stream_ = *stream;
    num_prompt_tokens_ = num_prompt_tokens;
  }
  if (is_late) return (*stream)->Cancel();
  (*stream)->SetNotify([weak = weak_from_this()] {
    if (const std::shared_ptr<GenerateCall> alive = weak.lock()) alive->RequestPump();
  });
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
    if (is_writing_ || end_.has_value() || stream_ == nullptr) return;
    engine::TokenStream::Polled polled = stream_->Poll();
    if (!polled.ready) return;
    if (polled.piece.ok() && polled.piece->has_value()) {
      reply_.Clear();
      ToProto(**polled.piece, reply_);
      reply_.set_num_prompt_tokens(std::exchange(num_prompt_tokens_, 0));
      writes = is_writing_ = true;
    } else {
      end = polled.piece.status();
    }
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
  std::shared_ptr<engine::TokenStream> stream;
  bool finishes = false;
  absl::Status end;
  {
    const std::lock_guard lock(mutex_);
    if (!end_.has_value()) end_ = status;
    end = *end_;
    stream = stream_;
    finishes = !is_writing_ && !has_finished_;
    has_finished_ |= finishes;
  }
  if (stream != nullptr && !end.ok()) stream->Cancel();
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
