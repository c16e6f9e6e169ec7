#include "coordinator/engine/engine.h"

#include <sys/prctl.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "coordinator/engine/deadline_keeper.h"
#include "coordinator/engine/engine_core.h"
#include "coordinator/engine/metrics.h"
#include "parallel/base/bounded_queue.h"
#include "parallel/base/log.h"
#include "parallel/base/out_of_memory.h"

namespace polyreme::engine {

class Engine::Impl {
 public:
  Impl(const EngineOptions& options, const ModelLimits& model, WorkerLink& link,
       const text::Tokenizer& tokenizer, const Clock& clock, Metrics& metrics)
      : options_(options),
        model_(model),
        link_(link),
        clock_(clock),
        metrics_(metrics),
        signals_(std::make_shared<EngineSignals>()),
        tokenizer_(tokenizer),
        core_(MakeCore(options.epoch)),
        mailbox_(limits::kMaxMailbox) {}

  ~Impl() { Stop(); }

  void Start() {
    const std::lock_guard lock(mutex_);
    CHECK(phase_ == Phase::kNew, "the engine was started before");
    phase_ = Phase::kServing;
    CHECK(MemoryReserve::Hold(limits::kMemoryReserveBytes), "no memory to hold back");
    last_progress_ = clock_.Now();
    thread_ = std::thread([this] {
      prctl(PR_SET_NAME, "engine");  // in top -H
      Run();
    });
  }

  absl::StatusOr<std::shared_ptr<TokenStream>> Submit(GenerateRequest request) {
    metrics_.RequestReceived();
    if (absl::Status s = CheckRequest(request); !s.ok()) return Refuse(s, "invalid");
    absl::StatusOr<text::StopMatcher> stops = text::StopMatcher::Make(request.stop);
    if (!stops.ok()) return Refuse(Annotate(stops.status(), "stop"), "invalid");

    const std::lock_guard lock(mutex_);
    if (absl::Status s = CheckServing(); !s.ok()) return Refuse(s, "unavailable");
    if (request.deadline <= clock_.Now()) return Refuse(DeadlinePassed(), "deadline");
    const int32_t num_choices = request.n;
    const int32_t num_queued = signals_->num_queued.load();
    // More choices than may wait can only come when nobody waits.
    if (num_queued > 0 && num_queued > options_.max_waiting - num_choices) {
      return Refuse(ResourceExhausted("{} of at most {} sequences are waiting, and {} more came",
                                      num_queued, options_.max_waiting, num_choices),
                    "full");
    }
    auto stream =
        std::make_shared<TokenStream>(options_.stream_capacity + kPiecesPerChoice * num_choices,
                                      [signals = signals_] { ++signals->num_cancels; });
    signals_->num_queued += num_choices;
    const absl::Time deadline = request.deadline;
    absl::Status sent = WithinMemory([&]() -> absl::Status {
      if (deadline < absl::InfiniteFuture()) deadlines_.Watch(deadline, stream);
      return mailbox_.TryPush({std::move(request), *std::move(stops), stream, clock_.Now()});
    });
    if (!sent.ok()) {
      signals_->num_queued -= num_choices;
      return Refuse(sent, absl::IsResourceExhausted(sent) ? "full" : "unavailable");
    }
    ++num_submitted_;
    return stream;
  }

  absl::Status CheckRoom() const {
    {
      const std::lock_guard lock(mutex_);
      RETURN_IF_ERROR(CheckServing());
    }
    const int32_t num_queued = signals_->num_queued.load();
    if (num_queued < options_.max_waiting) return absl::OkStatus();
    metrics_.RequestReceived();
    return Refuse(ResourceExhausted("{} of at most {} sequences are waiting", num_queued,
                                    options_.max_waiting),
                  "full");
  }

  void Drain(absl::Time deadline) {
    std::unique_lock lock(mutex_);
    if (phase_ == Phase::kServing) phase_ = Phase::kDraining;
    const bool is_idle = changed_.wait_until(lock, ToSteady(deadline), [&] {
      return phase_ != Phase::kDraining ||
             (seen_.num_taken == num_submitted_ && seen_.num_requests == 0);
    });
    if (!is_idle) gives_up_ = true;
  }

  void Stop() {
    {
      std::unique_lock lock(mutex_);
      if (phase_ == Phase::kNew) phase_ = Phase::kEnded;
      if (phase_ == Phase::kServing || phase_ == Phase::kDraining) phase_ = Phase::kStopping;
      mailbox_.Close(Unavailable("the engine has stopped"));
      changed_.wait_for(lock, absl::ToChronoNanoseconds(options_.stop_patience),
                        [&] { return phase_ == Phase::kEnded; });
      // A worker that hangs holds the engine thread inside Await: only the end of the epoch frees
      // it.
      if (phase_ != Phase::kEnded) link_.Abort(epoch_);
    }
    if (thread_.joinable()) thread_.join();
    CloseMailbox(Unavailable("the engine has stopped"));
  }

  EngineHealth health() const {
    const std::lock_guard lock(mutex_);
    EngineHealth health;
    health.num_running = seen_.num_running;
    health.num_waiting = seen_.num_waiting;
    health.steps_committed = seen_.steps_committed;
    if (seen_.num_requests > 0) health.since_progress = clock_.Now() - last_progress_;
    health.reason = Message(CheckServing());
    if (health.reason.empty() && !recovering_.empty()) {
      health.reason = fmt::format("recovering: {}", recovering_);
    }
    if (health.reason.empty() && health.since_progress > limits::kEngineProgressPatience) {
      health.reason = fmt::format("no step was committed for {:.0f} s",
                                  absl::ToDoubleSeconds(health.since_progress));
    }
    health.serving = health.reason.empty();
    return health;
  }

  absl::Status WaitUntilFailed(absl::Time deadline) {
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, ToSteady(deadline),
                        [&] { return !failure_.ok() || phase_ == Phase::kEnded; });
    return failure_;
  }

 private:
  enum class Phase { kNew, kServing, kDraining, kStopping, kEnded };
  // What the engine thread last said of itself.
  struct Snapshot {
    int64_t num_taken = 0;  // submissions out of the mailbox
    int32_t num_requests = 0;
    int32_t num_running = 0;
    int32_t num_waiting = 0;
    int64_t steps_committed = 0;
  };
  // A step gives every choice a piece: room for a few steps of all of them, beside the stream's
  // capacity.
  static constexpr int32_t kPiecesPerChoice = 16;

  absl::Status CheckRequest(const GenerateRequest& request) const {
    RETURN_IF_ERROR(Validate(request, model_));
    return sched::Scheduler::CheckFits(EngineCore::LimitsOf(options_),
                                       static_cast<int32_t>(request.prompt.size()),
                                       request.max_tokens);
  }

  // mutex_ is held.
  absl::Status CheckServing() const {
    if (!failure_.ok()) return failure_;
    switch (phase_) {
      case Phase::kServing:
        // The steps under way go on with what there is; the next round looks for more.
        return MemoryReserve::held() ? absl::OkStatus() : OutOfMemory();
      case Phase::kNew:
        return Unavailable("the engine has not started");
      case Phase::kDraining:
        return Unavailable("the server is shutting down");
      case Phase::kStopping:
      case Phase::kEnded:
        break;
    }
    return Unavailable("the engine has stopped");
  }

  absl::Status Refuse(absl::Status why, const char* reason) const {
    metrics_.RequestRefused(reason);
    return why;
  }

  std::unique_ptr<EngineCore> MakeCore(Epoch epoch) const {
    EngineOptions options = options_;
    options.epoch = epoch;
    return std::make_unique<EngineCore>(
        options, model_, EngineCore::Parts{link_, tokenizer_, clock_, metrics_, signals_},
        options.seed.has_value() ? *options.seed : std::random_device()());
  }

  void Run() {
    RunOnReserve("the engine thread", [this] {
      absl::Status why;
      while (why.ok()) why = RoundOrStartOver();
      End(why);
    });
  }

  absl::Status RoundOrStartOver() {
    try {
      return Round();
    } catch (const std::bad_alloc&) {
      return StartOver();
    }
  }

  absl::Status Round() {
    while (std::optional<Submission> submission = mailbox_.TryPop()) {
      ++num_taken_;
      core_->Accept(*std::move(submission));
    }
    absl::Status why = core_->RunOnce();
    if (!why.ok()) why = Recover(why);
    RETURN_IF_ERROR(why);
    if (gives_up_) core_->CloseAll(Unavailable("the server is shutting down"));
    RETURN_IF_ERROR(Publish());
    if (core_->idle()) mailbox_.WaitUntil(clock_.Now() + limits::kEngineIdle);
    return absl::OkStatus();
  }

  // What an exception has left of the core is not to be trusted: all that it served ends, the core
  // is made anew, and the workers begin with it in the next epoch.
  absl::Status StartOver() {
    const absl::Status& why = OutOfMemory();
    core_->Abandon(why);
    MemoryReserve::Hold(limits::kMemoryReserveBytes);  // what they held is free
    LogError("engine: out of memory, the reserve too; all requests were ended");
    ASSIGN_OR_RETURN(const Epoch epoch, NextEpoch(why));
    steps_before_ += core_->steps_committed();
    core_ = MakeCore(epoch);
    EndRecovery(epoch);
    return Publish();
  }

  // The next epoch, with what ran computed again; or why there is none.
  absl::Status Recover(const absl::Status& why) {
    ASSIGN_OR_RETURN(const Epoch epoch, NextEpoch(why));
    core_->NoteLoss(why);
    core_->Rewind(epoch);
    EndRecovery(epoch);
    return absl::OkStatus();
  }

  absl::StatusOr<Epoch> NextEpoch(const absl::Status& why) {
    {
      const std::lock_guard lock(mutex_);
      if (phase_ == Phase::kStopping) return why;
      recovering_ = Message(why);
    }
    recovery_began_ = clock_.Now();
    metrics_.Recovering();
    return link_.Recover(why);
  }

  void EndRecovery(Epoch epoch) {
    metrics_.Recovered(clock_.Now() - recovery_began_);
    const std::lock_guard lock(mutex_);
    recovering_.clear();
    epoch_ = epoch;
    last_progress_ = clock_.Now();
  }

  // Shows others how far the thread is, and makes good what it drew on; what they want of it comes
  // back: Unavailable if it is to end.
  absl::Status Publish() {
    MemoryReserve::Hold(limits::kMemoryReserveBytes);
    const std::lock_guard lock(mutex_);
    const int64_t steps_committed = steps_before_ + core_->steps_committed();
    if (steps_committed > seen_.steps_committed || seen_.num_requests == 0) {
      last_progress_ = clock_.Now();
    }
    seen_ = {num_taken_, core_->num_requests(), core_->num_running(), core_->num_waiting(),
             steps_committed};
    if (phase_ == Phase::kDraining) changed_.notify_all();
    if (phase_ == Phase::kStopping) return Unavailable("the engine has stopped");
    return absl::OkStatus();
  }

  void End(const absl::Status& why) {
    bool failed = false;
    {
      const std::lock_guard lock(mutex_);
      failed = phase_ != Phase::kStopping;
      if (failed) failure_ = Unavailable("the cluster failed: {}", Message(why));
    }
    if (failed) {
      LogError("engine: {}", Message(why));
      link_.Abort(epoch_);
    }
    const absl::Status reason = failed ? failure_ : Unavailable("the server is shutting down");
    mailbox_.Close(reason);
    core_->CloseAll(reason);
    CloseMailbox(reason);
    const std::lock_guard lock(mutex_);
    phase_ = Phase::kEnded;
    seen_ = {num_submitted_, 0, 0, 0, steps_before_ + core_->steps_committed()};
    changed_.notify_all();
  }

  void CloseMailbox(const absl::Status& why) {
    while (std::optional<Submission> submission = mailbox_.TryPop()) {
      signals_->num_queued -= submission->request.n;
      submission->stream->Close(why);
    }
  }

  const EngineOptions options_;
  const ModelLimits model_;
  WorkerLink& link_;
  const Clock& clock_;
  Metrics& metrics_;
  const std::shared_ptr<EngineSignals> signals_;
  const text::Tokenizer& tokenizer_;
  std::unique_ptr<EngineCore> core_;    // engine thread, once started
  int64_t steps_before_ = 0;            // engine thread; that cores before this one committed
  absl::Time recovery_began_;           // engine thread
  int64_t num_taken_ = 0;               // engine thread
  std::atomic<bool> gives_up_ = false;  // the time to drain is over
  BoundedQueue<Submission> mailbox_;
  DeadlineKeeper deadlines_{clock_};
  std::atomic<Epoch> epoch_ = options_.epoch;
  std::thread thread_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Phase phase_ = Phase::kNew;  // guarded by mutex_, and so on
  absl::Status failure_;
  std::string recovering_;  // why; empty: serving
  int64_t num_submitted_ = 0;
  Snapshot seen_;
  absl::Time last_progress_ = absl::InfinitePast();
};

Engine::Engine(const EngineOptions& options, const ModelLimits& model, WorkerLink& link,
               const text::Tokenizer& tokenizer, const Clock& clock, Metrics& metrics)
    : impl_(std::make_unique<Impl>(options, model, link, tokenizer, clock, metrics)) {}
Engine::~Engine() = default;

void Engine::Start() {
  impl_->Start();
}
absl::StatusOr<std::shared_ptr<TokenStream>> Engine::Submit(GenerateRequest request) {
  return impl_->Submit(std::move(request));
}
absl::Status Engine::CheckRoom() const {
  return impl_->CheckRoom();
}
void Engine::Drain(absl::Time deadline) {
  impl_->Drain(deadline);
}
void Engine::Stop() {
  impl_->Stop();
}
EngineHealth Engine::health() const {
  return impl_->health();
}
absl::Status Engine::WaitUntilFailed(absl::Time deadline) {
  return impl_->WaitUntilFailed(deadline);
}

}  // namespace polyreme::engine
