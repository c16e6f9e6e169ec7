#include "coordinator/engine/engine_core.h"

#include <algorithm>
#include <utility>

#include "coordinator/engine/deadline_keeper.h"
#include "parallel/base/out_of_memory.h"

namespace polyreme::engine {
namespace {

const char* NameOf(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAbort:
      return "abort";
    case FinishReason::kNone:
      break;
  }
  return "none";
}

}  // namespace

sched::SchedulerLimits EngineCore::LimitsOf(const EngineOptions& options) {
  sched::SchedulerLimits limits;
  limits.step = options.limits;
  limits.stages = options.stages;
  limits.max_num_seqs = options.max_num_seqs;
  limits.enable_prefix_caching = options.enable_prefix_caching;
  limits.max_num_batched_tokens = options.max_num_batched_tokens;
  // Submit counts those that never ran, or lets in one request's choices; preempted ones wait
  // beside them.
  limits.max_waiting = std::max(options.max_waiting, options.max_num_seqs) + options.max_num_seqs;
  return limits;
}

EngineCore::EngineCore(const EngineOptions& options, const ModelLimits& model, Parts parts,
                       uint64_t seed)
    : options_(options),
      model_(model),
      parts_(std::move(parts)),
      blocks_(options.limits.num_blocks, options.limits.tokens_per_block),
      scheduler_(LimitsOf(options), blocks_),
      random_(seed) {
  // absl's tables do not survive a failed growth: they have all the room they will need. Twice, so
  // that places of what was erased never make them grow.
  const sched::SchedulerLimits& limits = scheduler_.limits();
  const size_t most = 2 * static_cast<size_t>(limits.max_waiting + limits.max_num_seqs);
  requests_.reserve(most);
  choices_.reserve(most);
  scheduler_.Rewind(options.epoch);
}

EngineCore::~EngineCore() = default;

sched::SequenceOptions EngineCore::OptionsOf(const GenerateRequest& request, int64_t first_sequence,
                                             int32_t choice, uint64_t seed) const {
  sched::SequenceOptions options;
  options.id = SequenceId{first_sequence + choice};
  options.prompt = request.prompt;
  options.sampling = ToSamplingParams(request, model_, seed, choice);
  options.stop.max_tokens = request.max_tokens;
  options.stop.min_tokens = request.min_tokens;
  options.stop.max_model_len = model_.max_model_len;
  if (!request.ignore_eos) options.stop.eos_tokens = model_.eos_tokens;
  options.stop.stop_tokens = request.stop_token_ids;
  options.scores_prompt = choice == 0 && request.prompt_logprobs >= 0;
  options.priority = request.priority;
  if (request.n > 1) options.group = SequenceId{first_sequence};
  return options;
}

void EngineCore::Accept(Submission submission) {
  const RequestId id = next_request_++;
  const std::shared_ptr<TokenStream> stream = submission.stream;
  const int32_t num_choices = submission.request.n;
  absl::Status taken;
  {
    // What one request needs for itself is no reason to draw on what is kept for all.
    const MemoryReserve::Access access(false);
    taken = WithinMemory([&] { return Take(id, submission); });
  }
  if (taken.ok()) return;
  const auto found = requests_.find(id);
  const size_t num_made = found == requests_.end() ? 0 : found->second->choices.size();
  parts_.signals->num_queued -= num_choices - static_cast<int32_t>(num_made);
  if (found != requests_.end()) return EndRequest(*found->second, taken, "refused");
  stream->Close(taken);
}

// May leave a part of the request behind if it fails, but nothing that EndRequest does not end.
absl::Status EngineCore::Take(RequestId id, Submission& submission) {
  const GenerateRequest& asked = submission.request;
  const uint64_t seed = asked.seed.has_value() ? *asked.seed : random_();
  const int64_t first_sequence = std::exchange(next_sequence_, next_sequence_ + asked.n);
  auto owned = std::make_unique<Request>();
  Request& request = *owned;
  request.id = id;
  request.num_prompt_tokens = static_cast<int32_t>(asked.prompt.size());
  request.submitted = submission.submitted;
  request.deadline = asked.deadline;
  request.stream = std::move(submission.stream);
  request.choices.reserve(static_cast<size_t>(asked.n));
  requests_.emplace(request.id, std::move(owned));
  if (request.deadline < absl::InfiniteFuture()) deadlines_.insert({request.deadline, request.id});

  absl::Status admitted;
  for (int32_t i = 0; i < asked.n; ++i) {
    sched::SequenceOptions options = OptionsOf(asked, first_sequence, i, seed);
    const SequenceId sequence = options.id;
    request.choices.push_back(
        {sequence, ChoiceOutput(asked, i, parts_.tokenizer, submission.stops)});
    ++request.num_unfinished;
    choices_[sequence] = {&request, static_cast<size_t>(i)};
    admitted.Update(scheduler_.Admit(std::make_unique<sched::Sequence>(std::move(options))));
  }
  return admitted;
}

absl::Status EngineCore::RunOnce() {
  DropCancelled();
  DropExpired(parts_.clock.Now());
  RETURN_IF_ERROR(PlanAhead());
  // Asked before the commit: that may be what others were waiting for.
  idle_ = in_flight_.empty();
  if (idle_) {
    RETURN_IF_ERROR(parts_.link.failure());
  } else {
    RETURN_IF_ERROR(CommitOldest());
  }
  if (!suspects_.empty()) ConfineSuspects();
  ObserveLoad();
  return absl::OkStatus();
}

void EngineCore::DropCancelled() {
  const int64_t cancels = parts_.signals->num_cancels.load();
  if (cancels == cancels_seen_) return;
  cancels_seen_ = cancels;
  std::vector<Request*> gone;
  for (const auto& [id, request] : requests_) {
    if (request->stream->cancelled()) gone.push_back(request.get());
  }
  // In order, so that what follows can be replayed.
  std::sort(gone.begin(), gone.end(),
            [](const Request* a, const Request* b) { return a->id < b->id; });
  for (Request* request : gone) EndRequest(*request, Cancelled("the client is gone"), "abort");
}

void EngineCore::DropExpired(absl::Time now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    Request& request = *requests_.at(deadlines_.begin()->second);
    EndRequest(request, DeadlinePassed(), "deadline");
  }
}

absl::Status EngineCore::PlanAhead() {
  while (std::ssize(in_flight_) < options_.stages + 1) {
    const step::StepPlan* plan = scheduler_.Plan();
    if (plan == nullptr) break;
    RETURN_IF_ERROR(parts_.link.Submit(*plan));
    const absl::Time now = parts_.clock.Now();
    in_flight_.push_back({plan->id, static_cast<int32_t>(plan->tokens.size()),
                          static_cast<int32_t>(plan->rows.size()), now});
    parts_.metrics.ObserveInFlight(static_cast<int32_t>(in_flight_.size()));
    NoteStarted(*plan, now);
  }
  return absl::OkStatus();
}

void EngineCore::NoteStarted(const step::StepPlan& plan, absl::Time now) {
  for (const step::SlotOpen& opened : plan.opened) {
    const auto found = choices_.find(opened.sequence);
    CHECK(found != choices_.end(), "sequence {} is nobody's", opened.sequence.value);
    Request& request = *found->second.request;
    Choice& choice = request.choices[found->second.choice];
    if (choice.started) continue;
    choice.started = true;
    // Other choices share the first one's blocks anyway.
    if (found->second.choice == 0) {
      choice.num_cached_tokens = scheduler_.NumCachedTokens(opened.sequence);
    }
    --parts_.signals->num_queued;
    if (found->second.choice != 0) continue;
    parts_.metrics.ObserveQueueTime(now - request.submitted);
    parts_.metrics.AddPromptTokens(request.num_prompt_tokens);
  }
}

absl::Status EngineCore::CommitOldest() {
  const InFlight step = in_flight_.front();
  absl::StatusOr<step::StepResult> result =
      parts_.link.Await(step.id, parts_.clock.Now() + options_.step_patience);
  if (!result.ok()) return Annotate(result.status(), fmt::format("step {}", step.id.value));
  ASSIGN_OR_RETURN(const absl::Span<const sched::TokenEvent> events, scheduler_.Commit(*result));
  in_flight_.pop_front();
  ++steps_committed_;
  const absl::Time now = parts_.clock.Now();
  Deliver(events, *result, now);
  ObserveStep(step, *result, now);
  return absl::OkStatus();
}

void EngineCore::Deliver(absl::Span<const sched::TokenEvent> events, const step::StepResult& result,
                         absl::Time now) {
  int64_t num_tokens = 0;
  for (const sched::TokenEvent& event : events) {
    const auto found = choices_.find(event.sequence);
    // An earlier event of this step has ended the whole request.
    if (found == choices_.end()) continue;
    const auto [request, index] = found->second;
    Choice& choice = request->choices[index];
    const step::SampleResult* sample =
        event.sample < 0 ? nullptr : &result.samples[static_cast<size_t>(event.sample)];
    if (event.kind == sched::TokenEvent::Kind::kPromptScore) {
      choice.output.AddPromptScore(*sample);
      continue;
    }
    OutputPiece piece = choice.output.Take(event, sample);
    piece.num_cached_tokens = std::exchange(choice.num_cached_tokens, 0);
    num_tokens += std::ssize(piece.tokens);
    request->strikes = 0;
    const FinishReason finish = piece.finish;
    if (!Send(*request, index, std::move(piece), now)) continue;
    if (finish == FinishReason::kNone) continue;
    // A stop string is news to the scheduler; any other end it has seen itself.
    if (event.finish == sched::Finish::kNone) scheduler_.Cancel(event.sequence);
    FinishChoice(*request, index, finish, now);
  }
  if (num_tokens > 0) parts_.metrics.AddGenerationTokens(num_tokens);
}

bool EngineCore::Send(Request& request, size_t index, OutputPiece piece, absl::Time now) {
  Choice& choice = request.choices[index];
  if (!piece.tokens.empty()) {
    if (choice.last_token != absl::InfinitePast()) {
      parts_.metrics.ObserveInterToken(now - choice.last_token);
    } else if (!request.has_output) {
      parts_.metrics.ObserveTimeToFirstToken(now - request.submitted);
    }
    choice.last_token = now;
    request.has_output = true;
  }
  if (request.stream->Push(std::move(piece))) return true;
  EndRequest(request,
             request.stream->cancelled()
                 ? Cancelled("the client is gone")
                 : ResourceExhausted("the client fell too far behind in reading its tokens"),
             "abort");
  return false;
}

void EngineCore::FinishChoice(Request& request, size_t index, FinishReason reason, absl::Time now) {
  Choice& choice = request.choices[index];
  choice.finished = true;
  choices_.erase(choice.sequence);
  if (--request.num_unfinished > 0) return;
  int32_t num_output_tokens = 0;
  for (const Choice& each : request.choices) num_output_tokens += each.output.num_tokens();
  parts_.metrics.RequestFinished(NameOf(reason), request.num_prompt_tokens, num_output_tokens);
  parts_.metrics.ObserveEndToEnd(now - request.submitted);
  request.stream->Close(absl::OkStatus());
  Forget(request);
}

void EngineCore::EndRequest(Request& request, const absl::Status& why, const char* reason) {
  int32_t num_output_tokens = 0;
  for (Choice& choice : request.choices) {
    num_output_tokens += choice.output.num_tokens();
    if (choice.finished) continue;
    scheduler_.Cancel(choice.sequence);
    choices_.erase(choice.sequence);
    choice.finished = true;
    if (!choice.started) --parts_.signals->num_queued;
  }
  parts_.metrics.RequestFinished(reason, request.num_prompt_tokens, num_output_tokens);
  request.stream->Close(why);
  Forget(request);
}

void EngineCore::Forget(Request& request) {
  deadlines_.erase({request.deadline, request.id});
  requests_.erase(request.id);
}

void EngineCore::ObserveStep(const InFlight& step, const step::StepResult& result, absl::Time now) {
  Metrics& metrics = parts_.metrics;
  metrics.StepCommitted(step.num_tokens, step.num_rows, now - step.submitted);
  for (const step::RankTiming& timing : result.timings) {
    metrics.AddRankTime(timing.rank.value, timing.busy, timing.waiting);
  }
}

void EngineCore::ObserveLoad() {
  Metrics& metrics = parts_.metrics;
  metrics.SetRunning(scheduler_.num_running(), scheduler_.num_waiting());
  const double num_blocks = blocks_.num_blocks();
  metrics.SetCacheUsage((num_blocks - blocks_.num_free()) / num_blocks);
  const sched::PrefixCacheCounts& cached = scheduler_.prefix_cache_counts();
  metrics.AddPrefixCache(cached.queries - cached_seen_.queries, cached.hits - cached_seen_.hits);
  cached_seen_ = cached;
  if (scheduler_.num_preemptions() > preemptions_seen_) {
    metrics.AddPreemptions(scheduler_.num_preemptions() - preemptions_seen_);
    preemptions_seen_ = scheduler_.num_preemptions();
  }
}

void EngineCore::Rewind(Epoch epoch) {
  in_flight_.clear();
  scheduler_.Rewind(epoch);
  ConfineSuspects();
}

void EngineCore::NoteLoss(const absl::Status& why) {
  std::set<RequestId> in_flight;
  for (const SequenceId id : scheduler_.InFlight()) {
    const auto found = choices_.find(id);
    if (found != choices_.end()) in_flight.insert(found->second.request->id);
  }
  suspects_.clear();
  for (const auto& [id, request] : requests_) {
    request->strikes = in_flight.contains(id) ? request->strikes + 1 : 0;
    if (request->strikes >= 2) suspects_.push_back(id);
  }
  std::sort(suspects_.begin(), suspects_.end());
  if (suspects_.size() != 1) return;
  Request& request = *requests_.at(suspects_.front());
  suspects_.clear();
  EndRequest(request,
             MakeStatus(absl::StatusCode::kAborted,
                        fmt::format("the request was quarantined: workers were lost {} times in a "
                                    "row while they computed it, last: {}",
                                    request.strikes, Message(why))),
             "quarantined");
}

void EngineCore::ConfineSuspects() {
  const auto is_cleared = [&](RequestId id) {
    const auto found = requests_.find(id);
    return found == requests_.end() || found->second->strikes == 0;
  };
  while (!suspects_.empty() && is_cleared(suspects_.front())) suspects_.pop_front();
  std::vector<SequenceId> only;
  if (!suspects_.empty()) {
    for (const Choice& choice : requests_.at(suspects_.front())->choices) {
      if (!choice.finished) only.push_back(choice.sequence);
    }
  }
  scheduler_.Confine(std::move(only));
}

void EngineCore::Abandon(const absl::Status& why) {
  for (const auto& [id, request] : requests_) {
    for (const Choice& choice : request->choices) {
      if (!choice.finished && !choice.started) --parts_.signals->num_queued;
    }
    request->stream->Close(why);
  }
  choices_.clear();
  requests_.clear();
}

void EngineCore::CloseAll(const absl::Status& why) {
  while (!requests_.empty()) EndRequest(*requests_.begin()->second, why, "abort");
}

}  // namespace polyreme::engine
