// All that the engine thread owns: the scheduler, the requests it serves, the steps in flight. It
// has no thread and no clock of its own, so that a test can take it step by step.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "coordinator/engine/engine.h"
#include "coordinator/engine/metrics.h"
#include "coordinator/engine/output.h"
#include "coordinator/engine/request.h"
#include "coordinator/engine/token_stream.h"
#include "coordinator/engine/worker_link.h"
#include "coordinator/sched/scheduler.h"
#include "coordinator/text/stop_matcher.h"
#include "parallel/base/clock.h"

namespace polyreme::engine {

// A validated request on its way to the engine thread.
struct Submission {
  GenerateRequest request;
  text::StopMatcher stops;
  std::shared_ptr<TokenStream> stream;
  absl::Time submitted;
};

// What other threads see of the engine thread's work, and tell it. Shared, since a client may hold
// its stream longer than the engine lives.
struct EngineSignals {
  std::atomic<int32_t> num_queued = 0;   // sequences accepted by Submit that have not started
  std::atomic<int64_t> num_cancels = 0;  // calls of TokenStream::Cancel
};

class EngineCore {
 public:
  // What the core works with; borrowed, except for the signals.
  struct Parts {
    WorkerLink& link;
    const text::Tokenizer& tokenizer;
    const Clock& clock;
    Metrics& metrics;
    std::shared_ptr<EngineSignals> signals;
  };
  // `seed`: of the seeds drawn for requests without one.
  EngineCore(const EngineOptions& options, const ModelLimits& model, Parts parts, uint64_t seed);
  ~EngineCore();

  // The scheduler's limits for these options.
  static sched::SchedulerLimits LimitsOf(const EngineOptions& options);

  // Takes a request in. If it cannot be queued, or memory runs out, its stream says why.
  void Accept(Submission submission);
  // One round: drops what was cancelled or ran out of time, plans ahead, submits, waits for the
  // oldest step and delivers its tokens. An error is the link's: no step will be committed any
  // more, until Rewind.
  absl::Status RunOnce();
  // The workers start over with an empty cache in `epoch`: what ran is computed again, what was
  // delivered stays.
  void Rewind(Epoch epoch);
  // The epoch was lost: says who was in flight and has gained no token since the loss before. One
  // such request is quarantined (it ends with Aborted); several run alone, one after another, until
  // it is known which. Before Rewind.
  void NoteLoss(const absl::Status& why);
  // Ends every request with `why`.
  void CloseAll(const absl::Status& why);
  // The same after an exception, which may have left anything half done: only the streams are
  // touched, and nothing may be called any more.
  void Abandon(const absl::Status& why);

  // The last round found nothing to compute: only a new request can change anything.
  bool idle() const { return idle_; }
  int32_t num_requests() const { return static_cast<int32_t>(requests_.size()); }
  int32_t num_running() const { return scheduler_.num_running(); }
  int32_t num_waiting() const { return scheduler_.num_waiting(); }
  int32_t num_free_blocks() const { return blocks_.num_free(); }
  int64_t steps_committed() const { return steps_committed_; }

 private:
  using RequestId = int64_t;
  struct Choice {
    SequenceId sequence;
    ChoiceOutput output;
    bool started = false;
    int32_t num_cached_tokens = 0;  // that its first piece is to tell of
    bool finished = false;
    absl::Time last_token = absl::InfinitePast();
  };
  struct Request {
    RequestId id = 0;
    int32_t num_prompt_tokens = 0;
    absl::Time submitted;
    absl::Time deadline;
    std::shared_ptr<TokenStream> stream;
    std::vector<Choice> choices;
    int32_t num_unfinished = 0;
    bool has_output = false;
    int32_t strikes = 0;  // losses in a row that it was in flight in, without a token between
  };
  struct ChoiceRef {
    Request* request = nullptr;
    size_t choice = 0;
  };
  struct InFlight {
    StepId id;
    int32_t num_tokens = 0;
    int32_t num_rows = 0;
    absl::Time submitted;
  };

  absl::Status Take(RequestId id, Submission& submission);
  void DropCancelled();
  void DropExpired(absl::Time now);
  absl::Status PlanAhead();
  void NoteStarted(const step::StepPlan& plan, absl::Time now);
  absl::Status CommitOldest();
  void Deliver(absl::Span<const sched::TokenEvent> events, const step::StepResult& result,
               absl::Time now);
  // False: the client is gone, or does not read, and the request has ended.
  bool Send(Request& request, size_t choice, OutputPiece piece, absl::Time now);
  void FinishChoice(Request& request, size_t choice, FinishReason reason, absl::Time now);
  // Cancels what is left of it and closes its stream.
  void EndRequest(Request& request, const absl::Status& why, const char* reason);
  void Forget(Request& request);
  void ObserveStep(const InFlight& step, const step::StepResult& result, absl::Time now);
  void ObserveLoad();
  // The next request under suspicion runs alone; all, if there is none.
  void ConfineSuspects();
  sched::SequenceOptions OptionsOf(const GenerateRequest& request, int64_t first_sequence,
                                   int32_t choice, uint64_t seed) const;

  const EngineOptions options_;
  const ModelLimits model_;
  const Parts parts_;
  sched::BlockAllocator blocks_;
  sched::Scheduler scheduler_;
  std::mt19937_64 random_;
  absl::flat_hash_map<RequestId, std::unique_ptr<Request>> requests_;
  absl::flat_hash_map<SequenceId, ChoiceRef> choices_;    // unfinished
  std::set<std::pair<absl::Time, RequestId>> deadlines_;  // of requests that have one
  std::deque<InFlight> in_flight_;
  bool idle_ = true;
  RequestId next_request_ = 1;
  int64_t next_sequence_ = 1;
  std::deque<RequestId> suspects_;  // run alone, the first of them now
  int64_t steps_committed_ = 0;
  int64_t cancels_seen_ = 0;
  int64_t preemptions_seen_ = 0;
  sched::PrefixCacheCounts cached_seen_;
};

}  // namespace polyreme::engine
