// Who holds whom: the connection holds the Generation (through its on_closed callback) until the
// answer has ended or the client is gone; the Generation holds the responder and the streams; the
// streams' notice holds it weakly. All but Start runs on the connection's thread, so there is
// nothing to lock.
#include "coordinator/api/generation.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/api/answer.h"
#include "coordinator/api/api_error.h"
#include "parallel/base/out_of_memory.h"

namespace polyreme::api {
namespace {

// Enough to keep a socket busy. Beyond it pieces wait in their stream, whose bound ends what nobody
// reads.
constexpr int64_t kHighWaterBytes = int64_t{1} << 20;

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  Generation(const ApiContext& context, GenerationCall call, const std::string& http_id,
             std::shared_ptr<HttpResponder> responder)
      : context_(context),
        call_(std::move(call)),
        answer_(call_, http_id, context),
        responder_(std::move(responder)) {}

  ~Generation();

  void Start();

 private:
  struct Stream {
    std::shared_ptr<engine::TokenStream> tokens;
    bool has_ended = false;
  };

  absl::Status Submit();
  void Begin();
  // Ends the answer with an error if `work` runs out of memory; with the connection, if there is
  // none even for the error.
  template <class Work>
  void RunOrFail(Work work);
  void Pump();
  // False when nothing more can be done now.
  bool Drain(size_t prompt);
  void Flush();
  void Finish();
  void Fail(const absl::Status& status);
  void CancelAll();

  const ApiContext& context_;
  const GenerationCall call_;
  Answer answer_;
  const std::shared_ptr<HttpResponder> responder_;
  std::vector<Stream> streams_;
  std::string events_;  // not yet written
  bool has_started_ = false;
  bool has_ended_ = false;
  std::shared_ptr<HttpNotice> notice_;  // that there is something to pump
};

Generation::~Generation() {
  // Dropped by a server that stops: nobody listens any more.
  if (!has_ended_) CancelAll();
}

void Generation::Start() {
  const absl::Status begun = WithinMemory([this]() -> absl::Status {
    RETURN_IF_ERROR(Submit());
    responder_->Post([self = shared_from_this()] { self->RunOrFail([&] { self->Begin(); }); });
    return absl::OkStatus();
  });
  if (begun.ok()) return;
  CancelAll();
  if (!WithinMemory([&] { responder_->Send(ErrorResponse(begun)); }).ok()) responder_->Cut();
}

absl::Status Generation::Submit() {
  streams_.reserve(call_.requests.size());
  for (const engine::GenerateRequest& request : call_.requests) {
    ASSIGN_OR_RETURN(std::shared_ptr<engine::TokenStream> stream, context_.backend.Submit(request));
    streams_.push_back({.tokens = std::move(stream)});
  }
  return absl::OkStatus();
}

// From here on all is on the connection's thread.
void Generation::Begin() {
  responder_->SetOnClosed([self = shared_from_this()] { self->CancelAll(); });
  responder_->SetOnRoom([self = shared_from_this()] { self->RunOrFail([&] { self->Pump(); }); });
  // Whoever gives notice is the engine, which is not to fail for one client's sake: the memory for
  // it is taken now.
  notice_ = responder_->MakeNotice([weak = weak_from_this()] {
    const std::shared_ptr<Generation> self = weak.lock();
    if (self != nullptr) self->RunOrFail([&] { self->Pump(); });
  });
  for (const Stream& stream : streams_) {
    stream.tokens->SetNotify([notice = notice_] { notice->Give(); });
  }
  Pump();
}

template <class Work>
void Generation::RunOrFail(Work work) {
  const absl::Status done = WithinMemory(work);
  if (done.ok()) return;
  if (!WithinMemory([&] { Fail(done); }).ok()) responder_->Cut();
}

void Generation::Pump() {
  if (has_ended_) return;
  bool has_room = true;
  for (size_t i = 0; i < streams_.size() && has_room; ++i) has_room = Drain(i);
  if (has_ended_) return;
  const bool all_ended = std::all_of(streams_.begin(), streams_.end(),
                                     [](const Stream& stream) { return stream.has_ended; });
  if (all_ended) return Finish();
  Flush();
  // Held back by this round's own events alone: an answer that is kept always has room and says so
  // to nobody.
  if (!has_room && responder_->pending_bytes() <= kHighWaterBytes) notice_->Give();
}

bool Generation::Drain(size_t prompt) {
  Stream& stream = streams_[prompt];
  while (!stream.has_ended) {
    if (responder_->pending_bytes() + std::ssize(events_) > kHighWaterBytes) return false;
    engine::TokenStream::Polled polled = stream.tokens->Poll();
    if (!polled.ready) return true;
    if (!polled.piece.ok()) {
      Fail(polled.piece.status());
      return false;
    }
    if (!polled.piece->has_value()) {
      stream.has_ended = true;
      return true;
    }
    answer_.Add(prompt, **std::move(polled.piece), events_);
  }
  return true;
}

void Generation::Flush() {
  if (events_.empty()) return;
  if (!has_started_) {
    responder_->StartStream(
        {.content_type = "text/event-stream; charset=utf-8",
         .headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}});
    // Not before: a head that could not be made was not sent.
    has_started_ = true;
  }
  responder_->Write(std::exchange(events_, ""));
}

void Generation::Finish() {
  has_ended_ = true;
  if (call_.delivery == Delivery::kStream) {
    answer_.AppendEnd(events_);
    Flush();
    return responder_->Finish();
  }
  const absl::StatusOr<Json> whole = answer_.Whole();
  if (!whole.ok()) return responder_->Send(ErrorResponse(whole.status()));
  responder_->Send({.body = whole->Dump()});
}

// An error before the first event is a plain answer with its code; later it can only be an event.
void Generation::Fail(const absl::Status& status) {
  has_ended_ = true;
  CancelAll();
  if (!has_started_) return responder_->Send(ErrorResponse(status));
  events_ += ServerSentEvent(Json::MakeObject({{"error", ErrorJson(status)}}));
  events_ += kLastEvent;
  if (IsPassing(HttpCode(status))) responder_->DoNotKeep();
  Flush();
  responder_->Finish();
}

void Generation::CancelAll() {
  has_ended_ = true;
  for (const Stream& stream : streams_) stream.tokens->Cancel();
}

}  // namespace

void RunGeneration(const ApiContext& context, GenerationCall call, const std::string& http_id,
                   std::shared_ptr<HttpResponder> responder) {
  std::make_shared<Generation>(context, std::move(call), http_id, std::move(responder))->Start();
}

}  // namespace polyreme::api
