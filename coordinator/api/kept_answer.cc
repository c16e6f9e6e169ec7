// Who holds whom: the kept answer holds the generation (through on_closed_) until it has ended or
// is cancelled; the generation holds the recorder, which holds the answer. A client's connection
// holds its follower until the answer has reached it or it is gone.
#include "coordinator/api/kept_answer.h"

#include <algorithm>
#include <utility>

#include "coordinator/api/api_error.h"
#include "parallel/base/out_of_memory.h"
#include "parallel/base/status.h"

namespace polyreme::api {
namespace {

// Given to a client at once, and waiting at its socket at most.
constexpr size_t kSliceBytes = 256 << 10;
constexpr int64_t kHighWaterBytes = int64_t{1} << 20;

}  // namespace

// A client and how far it is; but for the notice, touched on its connection's thread.
struct KeptAnswer::Follower {
  std::shared_ptr<HttpResponder> client;
  Hearing hearing = Hearing::kFirst;
  bool has_started = false;
  size_t num_sent = 0;
  std::shared_ptr<HttpNotice> notice;  // that there is more
};

class KeptAnswer::Recorder final : public HttpResponder {
 public:
  explicit Recorder(std::shared_ptr<KeptAnswer> answer) : answer_(std::move(answer)) {}
  ~Recorder() override {
    CutIfOutOfMemory([this] { answer_->Break(); });
  }

  void Send(HttpResponse response) override {
    CutIfOutOfMemory([&] { answer_->Send(std::move(response)); });
  }
  void StartStream(HttpResponse head) override { answer_->StartStream(std::move(head)); }
  void Write(std::string bytes) override {
    CutIfOutOfMemory([&] { answer_->Write(std::move(bytes)); });
  }
  void Finish() override {
    CutIfOutOfMemory([this] { answer_->Finish(); });
  }
  void DoNotKeep() override { answer_->DoNotKeep(); }
  int64_t pending_bytes() const override { return 0; }
  void SetOnRoom(std::function<void()>) override {}  // there always is
  void SetOnClosed(std::function<void()> on_closed) override {
    answer_->SetOnClosed(std::move(on_closed));
  }
  void Post(std::function<void()> work) override {
    if (const auto notice = MakeNotice(std::move(work)); notice != nullptr) notice->Give();
  }
  std::shared_ptr<HttpNotice> MakeNotice(std::function<void()> work) override {
    return answer_->MakeNotice(std::move(work));
  }
  void Cut() noexcept override { answer_->Cut(); }

 private:
  template <class Work>
  void CutIfOutOfMemory(Work work) noexcept {
    if (!WithinMemory(work).ok()) answer_->Cut();
  }

  const std::shared_ptr<KeptAnswer> answer_;
};

KeptAnswer::KeptAnswer(std::shared_ptr<HttpResponder> host, Keeper keeper, const Clock& clock,
                       absl::Duration abandoned_after)
    : keeper_(std::move(keeper)),
      clock_(clock),
      abandoned_after_(abandoned_after),
      host_(std::move(host)),
      last_followed_(clock.Now()) {}

std::shared_ptr<HttpResponder> KeptAnswer::MakeRecorder() {
  return std::make_shared<Recorder>(shared_from_this());
}

void KeptAnswer::Follow(std::shared_ptr<HttpResponder> client, Hearing hearing) {
  auto follower = std::make_shared<Follower>();
  follower->client = std::move(client);
  follower->hearing = hearing;
  follower->notice = follower->client->MakeNotice(
      [answer = weak_from_this(), whom = std::weak_ptr<Follower>(follower)] {
        const std::shared_ptr<KeptAnswer> self = answer.lock();
        const std::shared_ptr<Follower> alive = whom.lock();
        if (self != nullptr && alive != nullptr) self->Pump(alive);
      });
  {
    const std::lock_guard lock(mutex_);
    followers_.push_back(follower);
  }
  const std::shared_ptr<KeptAnswer> self = shared_from_this();
  follower->client->SetOnClosed([self, follower] { self->Leave(follower); });
  follower->client->SetOnRoom([self, follower] { self->Pump(follower); });
  follower->notice->Give();
}

void KeptAnswer::Send(HttpResponse response) {
  const bool nothing = IsPassing(response.code);
  // One that cannot be kept still reaches those who wait for it now.
  const bool fits = nothing || keeper_.reserve(std::ssize(response.body));
  {
    const std::lock_guard lock(mutex_);
    if (has_ended_ || head_.has_value()) return;
    body_ = std::exchange(response.body, "");
    head_ = std::move(response);
  }
  EndWith(nothing ? End::kNothing : fits ? End::kComplete : End::kTooLarge);
}

void KeptAnswer::StartStream(HttpResponse head) {
  const std::lock_guard lock(mutex_);
  if (has_ended_ || head_.has_value()) return;
  head_ = std::move(head);
  is_stream_ = true;
}

void KeptAnswer::Write(std::string bytes) {
  // Nothing is reserved for what passes: its key is free already.
  const bool fits = keeper_.reserve(std::ssize(bytes)) || IsPassingAnswer();
  std::function<void()> cancel;
  {
    const std::lock_guard lock(mutex_);
    if (has_ended_ || !is_stream_) return;
    if (fits) {
      body_ += bytes;
    } else {
      body_ += keeper_.overflow;
      cancel = std::exchange(on_closed_, nullptr);
      is_cancelled_ = true;
    }
  }
  if (fits) return WakeAll();
  if (cancel) cancel();
  EndWith(End::kTooLarge);
}

void KeptAnswer::Finish() {
  bool is_passing = false;
  {
    const std::lock_guard lock(mutex_);
    if (has_ended_ || !is_stream_) return;
    is_passing = is_passing_;
  }
  EndWith(is_passing ? End::kNothing : End::kComplete);
}

// The keeper at once: who hears what is written next may ask again before Finish is called.
void KeptAnswer::DoNotKeep() {
  {
    const std::lock_guard lock(mutex_);
    is_passing_ = true;
  }
  keeper_.on_end(End::kNothing);
}

bool KeptAnswer::IsPassingAnswer() const {
  const std::lock_guard lock(mutex_);
  return is_passing_;
}

void KeptAnswer::Break() {
  {
    const std::lock_guard lock(mutex_);
    if (has_ended_) return;
    if (!head_.has_value()) {
      head_ = ErrorResponse(500, "the request was dropped without an answer");
      body_ = std::exchange(head_->body, "");
    }
  }
  EndWith(End::kNothing);
}

// The keeper first: who hears of the end may ask again at once.
void KeptAnswer::EndWith(End end) {
  keeper_.on_end(end);
  std::function<void()> generation;
  std::shared_ptr<HttpResponder> host;
  {
    const std::lock_guard lock(mutex_);
    has_ended_ = true;
    generation = std::exchange(on_closed_, nullptr);
    host = std::exchange(host_, nullptr);
  }
  WakeAll();
}

void KeptAnswer::SetOnClosed(std::function<void()> on_closed) {
  {
    const std::lock_guard lock(mutex_);
    if (!is_cancelled_) {
      if (!has_ended_) on_closed_ = std::move(on_closed);
      return;
    }
  }
  on_closed();
}

std::shared_ptr<HttpNotice> KeptAnswer::MakeNotice(std::function<void()> work) {
  // Who gives notice to an answer that has ended gives it to nobody.
  class ToNobody final : public HttpNotice {
    void Give() noexcept override {}
  };
  std::shared_ptr<HttpResponder> host;
  {
    const std::lock_guard lock(mutex_);
    host = host_;
  }
  if (host == nullptr) return std::make_shared<ToNobody>();
  return host->MakeNotice([answer = weak_from_this(), work = std::move(work)] {
    const std::shared_ptr<KeptAnswer> self = answer.lock();
    if (self == nullptr) return;
    if (self->IsAbandoned()) return self->Cancel();
    work();
  });
}

bool KeptAnswer::IsAbandoned() const {
  const std::lock_guard lock(mutex_);
  return !has_ended_ && followers_.empty() && clock_.Now() - last_followed_ > abandoned_after_;
}

// On the thread that makes the answer, as everything that touches the generation.
void KeptAnswer::CancelIfAbandoned() {
  if (IsAbandoned()) MakeNotice([] {})->Give();
}

void KeptAnswer::Cancel() {
  std::function<void()> cancel;
  {
    const std::lock_guard lock(mutex_);
    if (has_ended_) return;
    is_cancelled_ = true;
    cancel = std::exchange(on_closed_, nullptr);
  }
  if (cancel) cancel();
  Break();
}

void KeptAnswer::WakeAll() noexcept {
  const std::lock_guard lock(mutex_);
  for (const std::shared_ptr<Follower>& follower : followers_) follower->notice->Give();
}

void KeptAnswer::Cut() noexcept {
  keeper_.on_end(End::kNothing);
  std::function<void()> cancel;
  std::shared_ptr<HttpResponder> host;
  {
    const std::lock_guard lock(mutex_);
    if (has_ended_) return;
    has_ended_ = true;
    is_cancelled_ = true;
    cancel = std::exchange(on_closed_, nullptr);
    host = std::exchange(host_, nullptr);
    for (const std::shared_ptr<Follower>& follower : followers_) follower->client->Cut();
  }
  if (cancel) cancel();
}

// On the follower's connection's thread. One slice at a time: what is written counts as pending
// only behind this call.
void KeptAnswer::Pump(const std::shared_ptr<Follower>& follower) {
  HttpResponder& client = *follower->client;
  std::optional<HttpResponse> head;
  std::string slice;
  bool is_stream = false;
  bool is_last = false;
  {
    const std::lock_guard lock(mutex_);
    if (!head_.has_value() || (!is_stream_ && !has_ended_)) return;
    is_stream = is_stream_;
    if (is_stream && client.pending_bytes() > kHighWaterBytes)
      return;  // goes on when there is room
    if (!follower->has_started) head = *head_;
    slice = body_.substr(follower->num_sent, is_stream ? kSliceBytes : std::string::npos);
    follower->num_sent += slice.size();
    is_last = has_ended_ && follower->num_sent == body_.size();
  }
  if (head.has_value() && follower->hearing == Hearing::kAgain) {
    head->headers.push_back({"Idempotent-Replayed", "true"});
  }
  if (!is_stream) {
    if (!head.has_value()) return;
    follower->has_started = true;
    head->body = std::move(slice);
    client.Send(*std::move(head));
    return Leave(follower);
  }
  if (head.has_value()) {
    follower->has_started = true;
    client.StartStream(*std::move(head));
  }
  const bool has_written = !slice.empty();
  if (has_written) client.Write(std::move(slice));
  if (!is_last) {
    if (has_written) follower->notice->Give();
    return;
  }
  client.Finish();
  Leave(follower);
}

void KeptAnswer::Leave(const std::shared_ptr<Follower>& follower) {
  const std::lock_guard lock(mutex_);
  followers_.remove(follower);
  last_followed_ = clock_.Now();
}

}  // namespace polyreme::api
