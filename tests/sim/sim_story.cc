#include "tests/sim/sim_story.h"

#include <algorithm>
#include <utility>

#include "tests/coordinator/text_tiny_tokenizer.h"
#include "tests/sim/sim_requests.h"

namespace polyreme::sim {
namespace {

constexpr absl::Duration kLongestStory = absl::Hours(24);
constexpr int64_t kMostRounds = 200000;
constexpr int32_t kMailbox = 64;
constexpr int32_t kEightBlocks = 8;

const text::Tokenizer& SimTokenizer() {
  static const text::Tokenizer& tokenizer = *text::LoadOrDie(text::TinyTokenizerJson()).release();
  return tokenizer;
}

// The clock that the engine is given.
class EngineClock final : public Clock {
 public:
  EngineClock(const Loop& loop, bool stands_still) : loop_(loop), stands_still_(stands_still) {}
  absl::Time Now() const override { return stands_still_ ? begin_ : loop_.Now(); }

 private:
  const Loop& loop_;
  const bool stands_still_;
  const absl::Time begin_ = loop_.Now();
};

class Story {
 public:
  Story(uint64_t seed, const StoryOptions& options);
  StoryEnd Run();

 private:
  static engine::EngineOptions MakeOptions(Random& random, const StoryOptions& story,
                                           const Layout& layout);
  ClusterSettings MakeCluster();
  void MakeClients();
  void MakeFaults();

  // Clients, in events.
  void Arrive(Client& client);
  void Submit(Client& client, text::StopMatcher stops);
  void Refuse(Client& client);
  void ScheduleRead(Client& client);
  void ComeAgain(Client& client, absl::Duration at_most);

  // The engine's thread.
  void TakeMail();
  void Round();
  absl::Status Recover(const absl::Status& why);
  void End(const absl::Status& why);
  void MakeCore(Epoch epoch);
  void ReplaceCoordinator();
  bool IsOver() const;
  void NoteLoss();

  void CheckRound(absl::Time began);
  void CheckEnd();
  StoryEnd Summary() const;

  const StoryOptions story_;
  Loop loop_;
  Random random_;
  Report report_;
  const Layout layout_;
  const engine::EngineOptions options_;
  SimCluster link_;
  EngineClock clock_;
  engine::Metrics metrics_;
  std::shared_ptr<engine::EngineSignals> signals_ = std::make_shared<engine::EngineSignals>();
  std::unique_ptr<engine::EngineCore> core_;  // none while there is no coordinator
  std::mt19937_64 drawn_seeds_;               // as the core draws them
  int64_t next_sequence_ = 1;

  std::vector<std::unique_ptr<Client>> clients_;
  std::vector<bool> reads_soon_;  // by client
  int32_t arrivals_left_ = 0;
  std::deque<std::pair<Client*, engine::Submission>> mailbox_;
  bool over_ = false;  // the engine has ended
  int32_t idle_rounds_ = 0;
  int32_t submissions_lost_ = 0;
  int32_t num_broken_ = 0;
};

engine::EngineOptions Story::MakeOptions(Random& random, const StoryOptions& story,
                                         const Layout& layout) {
  engine::EngineOptions options;
  options.stages = layout.stages;
  options.max_num_seqs = story.eight_blocks ? random.Between(4, 8) : random.Between(1, 8);
  options.max_num_batched_tokens = random.Between(1, 32);
  options.enable_prefix_caching = !random.OneIn(4);
  options.max_waiting = random.OneIn(4) ? random.Between(2, 8) : 64;
  options.stream_capacity = random.OneIn(2) ? random.Between(1, 8) : 256;
  const bool eight = random.OneIn(2) || story.eight_blocks;
  options.limits = {.num_slots = options.max_num_seqs + random.Between(0, 2),
                    .num_blocks = eight ? kEightBlocks : random.Between(8, 64),
                    .tokens_per_block = random.Between(1, 6),
                    .max_step_tokens = 32,
                    .max_step_samples = random.Between(1, 24),
                    .max_model_len = SimModel().max_model_len,
                    .vocabulary = kVocabulary,
                    .max_steps_in_flight = layout.stages + 1};
  if (story.plenty) options.limits.num_blocks = 1024;
  return options;
}

ClusterSettings Story::MakeCluster() {
  ClusterSettings settings;
  settings.layout = layout_;
  settings.limits = options_.limits;
  settings.plant = story_.plant;
  settings.latest = loop_.Now() + kLongestStory;
  if (random_.OneIn(12)) settings.max_restarts = random_.Between(0, 3);
  if (random_.OneIn(2)) settings.faults_while_recovering = random_.Between(1, 3);
  if (!story_.faults) settings.faults_while_recovering = 0;
  settings.step_time_most = absl::Milliseconds(random_.Between(1, 40));
  settings.network_most = absl::Microseconds(random_.Between(100, 8000));
  return settings;
}

Story::Story(uint64_t seed, const StoryOptions& options)
    : story_(options),
      random_(seed),
      report_(loop_, options.traces),
      layout_{random_.Between(1, 3), random_.Between(1, 2)},
      options_(MakeOptions(random_, options, layout_)),
      link_(MakeCluster(), loop_, random_, report_),
      clock_(loop_, options.plant == Plant::kStandsStill),
      metrics_("sim", engine::Metrics::Names::kOwn) {
  MakeCore(Epoch{1});
  MakeClients();
  if (options.faults) MakeFaults();
}

void Story::MakeClients() {
  const int32_t num_blocks = story_.eight_blocks ? kEightBlocks : options_.limits.num_blocks;
  const bool grows = random_.OneIn(2) || story_.eight_blocks;
  RequestMaker maker(num_blocks * options_.limits.tokens_per_block, grows, random_);
  const bool may_kill = story_.faults && random_.OneIn(6);
  const int32_t count = story_.eight_blocks ? random_.Between(8, 20) : random_.Between(1, 20);
  const int32_t spread = random_.Between(1, 1500);
  for (int32_t i = 0; i < count; ++i) {
    engine::GenerateRequest request = maker.Make(may_kill);
    // What the engine draws depends on who comes first.
    if (story_.eight_blocks && !request.seed.has_value()) request.seed = random_.Next();
    const absl::Time arrives = loop_.Now() + absl::Milliseconds(random_.Between(0, spread));
    if (random_.OneIn(8)) {
      request.deadline = arrives + absl::Milliseconds(random_.Between(1, 4000));
    }
    std::vector<TokenId> text = request.prompt;
    const ChoiceText next =
        Expect(request, SimModel(), layout_, SimTokenizer(), request.seed.value_or(0), 0);
    text.insert(text.end(), next.tokens.begin(), next.tokens.end());
    maker.Remember(std::move(text));
    const Reader reader = random_.OneIn(8)   ? Reader::kNever
                          : random_.OneIn(6) ? Reader::kSlow
                                             : Reader::kFast;
    Client& client =
        *clients_.emplace_back(std::make_unique<Client>(i, std::move(request), reader));
    ++arrivals_left_;
    loop_.At(arrives, [this, &client] { Arrive(client); });
    if (!random_.OneIn(5)) continue;
    loop_.At(arrives + absl::Milliseconds(random_.Between(0, 800)), [this, &client] {
      if (!client.submitted()) return;
      client.Cancel(loop_.Now());
      report_.Trace("client {} cancels", client.number());
      if (story_.plant == Plant::kForgetsACancel) --signals_->num_cancels;
    });
  }
  reads_soon_.resize(clients_.size());
}

void Story::MakeFaults() {
  if (random_.OneIn(4)) return;
  const int32_t most = random_.Between(20, 4000);
  for (int32_t i = random_.Between(1, 5); i > 0; --i) {
    const Fault fault = random_.PickOf(kFaults);
    loop_.After(absl::Milliseconds(random_.Between(0, most)),
                [this, fault] { link_.Inject(fault); });
  }
}

// As Engine::Submit.
void Story::Arrive(Client& client) {
  const engine::GenerateRequest& request = client.request();
  absl::Status valid = Validate(request, SimModel());
  absl::StatusOr<text::StopMatcher> stops = text::StopMatcher::Make(request.stop);
  if (valid.ok()) valid = stops.status();
  if (valid.ok()) {
    valid = sched::Scheduler::CheckFits(engine::EngineCore::LimitsOf(options_),
                                        static_cast<int32_t>(request.prompt.size()),
                                        request.max_tokens);
  }
  if (!valid.ok()) {
    report_.Fail("client {} asks for what cannot be: {}", client.number(), Message(valid));
    return Refuse(client);
  }
  if (over_) return Refuse(client);
  // Nobody listens.
  if (core_ == nullptr || link_.coordinator_lost()) {
    return ComeAgain(client, absl::Milliseconds(500));
  }
  if (signals_->num_queued > options_.max_waiting - request.n || std::ssize(mailbox_) >= kMailbox) {
    if (client.tries_left-- <= 0) return Refuse(client);
    return ComeAgain(client, absl::Milliseconds(500));
  }
  Submit(client, *std::move(stops));
}

void Story::ComeAgain(Client& client, absl::Duration at_most) {
  loop_.After(random_.Between(absl::Milliseconds(1), at_most), [this, &client] { Arrive(client); });
}

void Story::Submit(Client& client, text::StopMatcher stops) {
  const engine::GenerateRequest& request = client.request();
  const int32_t capacity = options_.stream_capacity + request.n;
  const auto stream = std::make_shared<engine::TokenStream>(
      capacity, [signals = signals_] { ++signals->num_cancels; });
  signals_->num_queued += request.n;
  --arrivals_left_;
  client.Submitted(stream, capacity);
  report_.Trace("client {} submits: {} prompt tokens, n {}, max_tokens {}", client.number(),
                request.prompt.size(), request.n, request.max_tokens);
  if (story_.plant == Plant::kLosesASubmission && ++submissions_lost_ % 7 == 3) {
    signals_->num_queued -= request.n;
    return;
  }
  mailbox_.push_back({&client, {request, stops, stream, loop_.Now()}});
  if (client.reader() == Reader::kNever) return;
  stream->SetNotify([this, &client] { ScheduleRead(client); });
}

void Story::Refuse(Client& client) {
  client.Refused();
  --arrivals_left_;
  report_.Trace("client {} is refused", client.number());
}

void Story::ScheduleRead(Client& client) {
  const auto index = static_cast<size_t>(client.number());
  if (reads_soon_[index]) return;
  reads_soon_[index] = true;
  const bool slow = client.reader() == Reader::kSlow;
  loop_.After(slow ? random_.Between(absl::Milliseconds(20), absl::Seconds(3))
                   : random_.Between(absl::ZeroDuration(), absl::Milliseconds(2)),
              [this, &client, index] {
                reads_soon_[index] = false;
                client.Read(loop_, report_);
              });
}

void Story::TakeMail() {
  while (!mailbox_.empty()) {
    auto [client, submission] = std::move(mailbox_.front());
    mailbox_.pop_front();
    const engine::GenerateRequest& request = client->request();
    const uint64_t seed = request.seed.has_value() ? *request.seed : drawn_seeds_();
    std::vector<ChoiceText> expected;
    for (int32_t i = 0; i < request.n; ++i) {
      expected.push_back(Expect(request, SimModel(), layout_, SimTokenizer(), seed, i));
    }
    client->Accepted(SequenceId{next_sequence_}, std::move(expected));
    next_sequence_ += request.n;
    if (story_.plant == Plant::kAcceptsTwice) {
      signals_->num_queued += request.n;
      core_->Accept({request, submission.stops, submission.stream, submission.submitted});
      next_sequence_ += request.n;
    }
    core_->Accept(std::move(submission));
  }
}

// As Engine's thread.
void Story::Round() {
  TakeMail();
  const absl::Time began = loop_.Now();
  absl::Status why = core_->RunOnce();
  if (why.ok()) CheckRound(began);
  if (!why.ok() && !report_.failed() && !link_.coordinator_lost()) why = Recover(why);
  if (link_.coordinator_lost()) return;
  if (!why.ok()) return End(why);
  if (core_->idle()) {
    const absl::Time until = loop_.Now() + limits::kEngineIdle;
    while (mailbox_.empty() && loop_.RunNext(until)) {
    }
  } else {
    loop_.RunUntil(loop_.Now() + random_.Between(absl::Microseconds(5), absl::Microseconds(300)));
  }
}

absl::Status Story::Recover(const absl::Status& why) {
  ASSIGN_OR_RETURN(const Epoch epoch, link_.Recover(why));
  NoteLoss();
  if (story_.plant != Plant::kSkipsNoteLoss) core_->NoteLoss(why);
  if (story_.plant != Plant::kSkipsRewind) core_->Rewind(epoch);
  return absl::OkStatus();
}

void Story::NoteLoss() {
  for (const auto& client : clients_) {
    const bool in_flight = std::any_of(link_.lost_in_flight().begin(), link_.lost_in_flight().end(),
                                       [&](SequenceId id) { return client->Owns(id); });
    if (in_flight) ++client->num_losses;
  }
}

void Story::MakeCore(Epoch epoch) {
  engine::EngineOptions options = options_;
  options.epoch = epoch;
  const uint64_t seed = random_.Next();
  core_ = std::make_unique<engine::EngineCore>(
      options, SimModel(),
      engine::EngineCore::Parts{link_, SimTokenizer(), clock_, metrics_, signals_}, seed);
  drawn_seeds_.seed(seed);
  next_sequence_ = 1;
}

// All that the coordinator knew is gone, and who was served has lost his connection; most of them
// ask again. Its agent starts another.
void Story::ReplaceCoordinator() {
  core_.reset();
  mailbox_.clear();
  signals_ = std::make_shared<engine::EngineSignals>();
  for (const auto& client : clients_) {
    if (!client->submitted() || client->ended()) continue;
    ++num_broken_;
    client->Break();
    if (client->cancelled() || random_.OneIn(8)) {
      client->Refused();
      continue;
    }
    ++arrivals_left_;
    ComeAgain(*client, absl::Seconds(3));
  }
  loop_.RunUntil(loop_.Now() + random_.Between(absl::Milliseconds(20), absl::Seconds(5)));
  const absl::StatusOr<Epoch> epoch = link_.TakeOver();
  if (epoch.ok()) return MakeCore(*epoch);
  if (!link_.coordinator_lost()) End(epoch.status());
}

void Story::End(const absl::Status& why) {
  over_ = true;
  report_.Trace("the engine ends: {}", Message(why));
  const absl::Status reason = Unavailable("the cluster failed: {}", Message(why));
  if (core_ != nullptr) core_->CloseAll(reason);
  for (auto& [client, submission] : mailbox_) {
    signals_->num_queued -= client->request().n;
    submission.stream->Close(reason);
  }
  mailbox_.clear();
}

void Story::CheckRound(absl::Time began) {
  const int32_t num_used = options_.limits.num_blocks - core_->num_free_blocks();
  if (num_used > link_.NumBlocksHeld()) {
    report_.Fail("{} blocks are taken, and {} in anybody's hands", num_used, link_.NumBlocksHeld());
  }
  if (core_->num_running() == 0 && num_used > 0) {
    report_.Fail("nobody runs, and {} blocks are taken", num_used);
  }
  for (const auto& client : clients_) {
    if (client->ended() || !client->MustHaveEnded(began)) continue;
    client->Read(loop_, report_);
    if (!client->ended()) {
      report_.Fail("client {} was cancelled or out of time, and a round later it still runs",
                   client->number());
    }
  }
  const bool stuck = core_->idle() && core_->num_requests() > 0;
  idle_rounds_ = stuck ? idle_rounds_ + 1 : 0;
  if (idle_rounds_ > 3) report_.Fail("{} requests wait, and nothing runs", core_->num_requests());
}

bool Story::IsOver() const {
  if (arrivals_left_ > 0 || (core_ == nullptr && !over_)) return false;
  return over_ || (mailbox_.empty() && core_->num_requests() == 0 && core_->idle());
}

StoryEnd Story::Run() {
  const absl::Time latest = loop_.Now() + kLongestStory;
  for (int64_t rounds = 0; !IsOver() && !report_.failed(); ++rounds) {
    if (loop_.Now() > latest || rounds > kMostRounds) {
      report_.Fail("no end in sight after {} rounds, {} requests are left", rounds,
                   core_ != nullptr ? core_->num_requests() : 0);
      break;
    }
    if (over_) {
      if (!loop_.RunNext(latest)) break;
    } else if (link_.coordinator_lost()) {
      ReplaceCoordinator();
    } else {
      Round();
    }
  }
  if (!report_.failed()) CheckEnd();
  return Summary();
}

// Nothing is left, and each client knows.
void Story::CheckEnd() {
  for (const auto& client : clients_) {
    if (client->submitted()) client->Read(loop_, report_);
    if (!client->ended()) report_.Fail("client {} never got an end", client->number());
    if (absl::IsUnavailable(client->status()) && !over_) {
      report_.Fail("client {}: {}", client->number(), Message(client->status()));
    }
  }
  if (signals_->num_queued != 0)
    report_.Fail("{} sequences queued for ever", signals_->num_queued.load());
  if (core_ == nullptr) return;
  const int32_t num_taken = options_.limits.num_blocks - core_->num_free_blocks();
  if (num_taken != 0) report_.Fail("{} blocks are lost", num_taken);
  if (core_->num_requests() + core_->num_running() + core_->num_waiting() != 0) {
    report_.Fail("{} requests, {} running, {} waiting are left", core_->num_requests(),
                 core_->num_running(), core_->num_waiting());
  }
}

StoryEnd Story::Summary() const {
  StoryEnd end;
  end.failure = report_.failure();
  end.trace = report_.lines();
  end.digest = link_.digest();
  end.num_steps = link_.num_steps();
  end.num_losses = link_.num_losses();
  end.num_takeovers = link_.num_takeovers();
  end.num_broken = num_broken_;
  end.num_preemptions = link_.num_preemptions();
  end.num_reused = link_.num_reused();
  end.num_events = loop_.num_run();
  for (const auto& client : clients_) {
    if (!client->submitted()) continue;
    const absl::Status& status = client->status();
    end.num_ok += status.ok() ? 1 : 0;
    if (status.ok() && client->ended()) end.outputs[client->number()] = client->got();
    end.num_cancelled += absl::IsCancelled(status) ? 1 : 0;
    end.num_late += absl::IsDeadlineExceeded(status) ? 1 : 0;
    end.num_slow += absl::IsResourceExhausted(status) ? 1 : 0;
    end.num_quarantined += absl::IsAborted(status) ? 1 : 0;
    end.num_unavailable += absl::IsUnavailable(status) ? 1 : 0;
  }
  return end;
}

}  // namespace

StoryEnd& StoryEnd::operator+=(const StoryEnd& other) {
  num_steps += other.num_steps;
  num_losses += other.num_losses;
  num_takeovers += other.num_takeovers;
  num_preemptions += other.num_preemptions;
  num_reused += other.num_reused;
  num_events += other.num_events;
  num_ok += other.num_ok;
  num_cancelled += other.num_cancelled;
  num_late += other.num_late;
  num_slow += other.num_slow;
  num_quarantined += other.num_quarantined;
  num_unavailable += other.num_unavailable;
  num_broken += other.num_broken;
  return *this;
}

StoryEnd RunStory(uint64_t seed, const StoryOptions& options) {
  return Story(seed, options).Run();
}

}  // namespace polyreme::sim
