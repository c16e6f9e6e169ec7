#include "coordinator/api/grpc_replies.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "coordinator/api/api_error.h"
#include "coordinator/api/errand.h"
#include "coordinator/api/proto_request.h"
#include "parallel/base/log.h"
#include "parallel/base/out_of_memory.h"

namespace polyreme::api {
namespace {

// A kept answer is frames: a letter, the length of what follows, and that.
constexpr char kReplyFrame = 'r';
constexpr char kEndFrame = 'e';  // the status code as one byte, and its message
constexpr size_t kFrameHeadBytes = 1 + sizeof(uint32_t);
// What was taken is let go of when it is so much.
constexpr size_t kTakenBytes = 64 << 10;
// Then other runs have their turn.
constexpr int32_t kPiecesAtOnce = 64;

std::string Frame(char kind, std::string_view bytes) {
  const uint32_t size = static_cast<uint32_t>(bytes.size());
  std::string frame(kFrameHeadBytes, kind);
  std::memcpy(frame.data() + 1, &size, sizeof(size));
  return frame.append(bytes);
}

class TokenReplies final : public ReplySource {
 public:
  TokenReplies(std::shared_ptr<engine::TokenStream> stream, int32_t num_prompt_tokens)
      : stream_(std::move(stream)), num_prompt_tokens_(num_prompt_tokens) {}

  Polled Poll(v1::GenerateReply& reply, absl::Status& end) override {
    engine::TokenStream::Polled polled = stream_->Poll();
    if (!polled.ready) return Polled::kNothingYet;
    if (!polled.piece.ok() || !polled.piece->has_value()) {
      end = polled.piece.status();
      return Polled::kEnd;
    }
    reply.Clear();
    ToProto(**polled.piece, reply);
    reply.set_num_prompt_tokens(std::exchange(num_prompt_tokens_, 0));
    return Polled::kReply;
  }
  void SetNotify(std::function<void()> notify) override { stream_->SetNotify(std::move(notify)); }
  void Cancel() override { stream_->Cancel(); }

 private:
  const std::shared_ptr<engine::TokenStream> stream_;
  int32_t num_prompt_tokens_;  // until the first reply has told it
};

// The recorder's answer holds it until it has ended; it holds the recorder. All but Start runs on
// the one thread of what the recorder posts to.
class KeptRun : public std::enable_shared_from_this<KeptRun> {
 public:
  KeptRun(std::shared_ptr<ReplySource> replies, std::shared_ptr<HttpResponder> recorder)
      : replies_(std::move(replies)), recorder_(std::move(recorder)) {}

  void Start() {
    recorder_->StartStream({});
    recorder_->SetOnClosed([self = shared_from_this()] { self->replies_->Cancel(); });
    notice_ = recorder_->MakeNotice([weak = weak_from_this()] {
      if (const std::shared_ptr<KeptRun> alive = weak.lock()) alive->PumpOrCut();
    });
    replies_->SetNotify([notice = notice_] { notice->Give(); });
    notice_->Give();
  }

 private:
  void PumpOrCut() {
    if (WithinMemory([this] { Pump(); }).ok()) return;
    replies_->Cancel();
    recorder_->Cut();
  }

  void Pump() {
    absl::Status end;
    for (int32_t i = 0; i < kPiecesAtOnce && !has_ended_; ++i) {
      switch (replies_->Poll(reply_, end)) {
        case ReplySource::Polled::kNothingYet:
          return;
        case ReplySource::Polled::kReply:
          recorder_->Write(Frame(kReplyFrame, reply_.SerializeAsString()));
          break;
        case ReplySource::Polled::kEnd:
          has_ended_ = true;
          EndKept(end, *recorder_);
      }
    }
    if (!has_ended_) notice_->Give();
  }

  const std::shared_ptr<ReplySource> replies_;
  const std::shared_ptr<HttpResponder> recorder_;
  v1::GenerateReply reply_;
  bool has_ended_ = false;
  std::shared_ptr<HttpNotice> notice_;  // that there is something to pump
};

}  // namespace

std::shared_ptr<ReplySource> OwnReplies(std::shared_ptr<engine::TokenStream> stream,
                                        int32_t num_prompt_tokens) {
  return std::make_shared<TokenReplies>(std::move(stream), num_prompt_tokens);
}

void RunKept(std::shared_ptr<engine::TokenStream> stream, int32_t num_prompt_tokens,
             std::shared_ptr<HttpResponder> recorder) {
  std::make_shared<KeptRun>(OwnReplies(std::move(stream), num_prompt_tokens), std::move(recorder))
      ->Start();
}

std::string KeptEnd(const absl::Status& status) {
  return Frame(kEndFrame, std::string(1, static_cast<char>(status.code())) + Message(status));
}

void EndKept(const absl::Status& status, HttpResponder& recorder) {
  recorder.StartStream({});  // nothing, if it has begun
  if (IsPassing(HttpCode(status))) recorder.DoNotKeep();
  recorder.Write(KeptEnd(status));
  recorder.Finish();
}

size_t KeptReplies::NextFrameBytes() const {
  if (bytes_.size() - begin_ < kFrameHeadBytes) return 0;
  uint32_t size = 0;
  std::memcpy(&size, bytes_.data() + begin_ + 1, sizeof(size));
  const size_t all = kFrameHeadBytes + size;
  return bytes_.size() - begin_ < all ? 0 : all;
}

ReplySource::Polled KeptReplies::Poll(v1::GenerateReply& reply, absl::Status& end) {
  const std::lock_guard lock(mutex_);
  const size_t num_bytes = NextFrameBytes();
  if (num_bytes == 0) {
    end = end_;
    return is_over_ ? Polled::kEnd : Polled::kNothingYet;
  }
  const char kind = bytes_[begin_];
  const std::string_view frame =
      std::string_view(bytes_).substr(begin_ + kFrameHeadBytes, num_bytes - kFrameHeadBytes);
  if (kind == kEndFrame) {
    end = MakeStatus(static_cast<absl::StatusCode>(frame[0]), frame.substr(1));
    return Polled::kEnd;
  }
  CHECK(kind == kReplyFrame && reply.ParseFromArray(frame.data(), static_cast<int>(frame.size())),
        "a frame of a kept answer that nobody wrote");
  begin_ += num_bytes;
  if (begin_ == bytes_.size() || begin_ > kTakenBytes) bytes_.erase(0, std::exchange(begin_, 0));
  // Posted: the answer may have its own lock while it asks this for its pending bytes.
  if (NextFrameBytes() == 0 && on_room_ != nullptr) Post(on_room_);
  return Polled::kReply;
}

void KeptReplies::SetNotify(std::function<void()> notify) {
  const Notify shared = std::make_shared<const std::function<void()>>(std::move(notify));
  {
    const std::lock_guard lock(mutex_);
    notify_ = shared;
    if (NextFrameBytes() == 0 && !is_over_) return;
  }
  (*shared)();
}

void KeptReplies::Cancel() {
  std::function<void()> on_closed;
  std::function<void()> on_room;
  {
    const std::lock_guard lock(mutex_);
    is_cancelled_ = true;
    bytes_.clear();
    begin_ = 0;
    on_closed = std::exchange(on_closed_, nullptr);
    on_room = std::exchange(on_room_, nullptr);
  }
  if (on_closed) on_closed();
}

void KeptReplies::Send(HttpResponse response) {
  EndWith(response.code == 500 ? Internal("the request was dropped without an answer")
                               : Unavailable("the request was dropped: {}", response.code));
}

void KeptReplies::Write(std::string bytes) {
  Notify notify;
  {
    const std::lock_guard lock(mutex_);
    if (is_cancelled_) return;
    bytes_ += bytes;
    if (NextFrameBytes() != 0) notify = notify_;
  }
  if (notify != nullptr) (*notify)();
}

void KeptReplies::Finish() {
  EndWith(Unavailable("the answer broke off; ask again"));
}

// What the answer gave for its sake goes: it holds this.
void KeptReplies::EndWith(absl::Status end) {
  Notify notify;
  std::function<void()> on_closed;
  std::function<void()> on_room;
  {
    const std::lock_guard lock(mutex_);
    if (is_over_) return;
    is_over_ = true;
    end_ = std::move(end);
    notify = notify_;
    on_closed = std::exchange(on_closed_, nullptr);
    on_room = std::exchange(on_room_, nullptr);
  }
  if (notify != nullptr) (*notify)();
}

int64_t KeptReplies::pending_bytes() const {
  const std::lock_guard lock(mutex_);
  // A frame in parts waits for its rest, not for the client.
  return NextFrameBytes() == 0 ? 0 : static_cast<int64_t>(bytes_.size() - begin_);
}

void KeptReplies::SetOnRoom(std::function<void()> on_room) {
  const std::lock_guard lock(mutex_);
  if (!is_over_ && !is_cancelled_) on_room_ = std::move(on_room);
}

void KeptReplies::SetOnClosed(std::function<void()> on_closed) {
  {
    const std::lock_guard lock(mutex_);
    if (is_over_) return;
    if (!is_cancelled_) {
      on_closed_ = std::move(on_closed);
      return;
    }
  }
  on_closed();
}

void KeptReplies::Post(std::function<void()> work) {
  const absl::Status queued = thread_->TryRun(std::move(work));
  if (absl::IsResourceExhausted(queued)) LogError("a kept answer waits: {}", Message(queued));
}

std::shared_ptr<HttpNotice> KeptReplies::MakeNotice(std::function<void()> work) {
  class Notice final : public HttpNotice {
   public:
    Notice(std::shared_ptr<TaskPool> thread, std::shared_ptr<Errand> errand)
        : thread_(std::move(thread)), errand_(std::move(errand)) {}
    void Give() noexcept override { thread_->Give(errand_); }

   private:
    const std::shared_ptr<TaskPool> thread_;
    const std::shared_ptr<Errand> errand_;
  };
  std::shared_ptr<Errand> errand = MakeErrand(std::move(work), [weak = weak_from_this()] {
    if (const std::shared_ptr<KeptReplies> alive = weak.lock()) alive->Cut();
  });
  return std::make_shared<Notice>(thread_, std::move(errand));
}

void KeptReplies::Cut() noexcept {
  EndWith(OutOfMemory());
}

}  // namespace polyreme::api
