// The coordinator's side: streams, epochs and the engine's calls, as Cluster has them.
#include "tests/sim/sim_cluster.h"

#include <algorithm>
#include <utility>

#include "parallel/base/limits.h"
#include "parallel/wire/codec.h"
#include "tests/sim/sim_process.h"

namespace polyreme::sim {
namespace {

using engine::Peers;

constexpr absl::Duration kJoinTimeout = absl::Seconds(120);
constexpr absl::Duration kLoadPatience = absl::Seconds(300);

}  // namespace

SimCluster::SimCluster(const ClusterSettings& settings, Loop& loop, Random& random, Report& report)
    : settings_(settings),
      loop_(loop),
      random_(random),
      report_(report),
      faults_while_recovering_(settings.faults_while_recovering),
      mirror_(settings.limits),
      validator_(settings.limits) {
  BeginAnew();
  const int32_t world = settings.layout.world_size();
  processes_.resize(static_cast<size_t>(world));
  const auto group = std::make_shared<Group>(Epoch{1}, settings.layout);
  groups_[1] = group;
  for (int32_t rank = 0; rank < world; ++rank) {
    ProcessPtr& process = processes_[static_cast<size_t>(rank)];
    process = std::make_shared<Process>(rank, next_life_++, settings, random.Next());
    process->ticket =
        *peers_->Join({rank, world, "sim", process->life, "build", "settings", "checkpoint", ""});
    CHECK(peers_->Attach(rank, process->ticket).ok());
    peers_->SetLoaded(rank, 0, 0, 0);
    peers_->SetReady(rank, {});
    process->attached = process->loaded = process->serves = true;
    process->loading = true;
    process->epoch = process->known_epoch = Epoch{1};
    group->members[static_cast<size_t>(rank)] = process;
  }
  peers_->SetServed();
}

SimCluster::~SimCluster() = default;

absl::Status SimCluster::Submit(const step::StepPlan& plan) {
  std::set<SequenceId>& sequences = in_flight_.emplace_back(plan.id, std::set<SequenceId>()).second;
  if (absl::Status valid = validator_.Check(plan, mirror_); !valid.ok()) {
    report_.Fail("the engine planned what no worker may accept: {}", Message(valid));
    return valid;
  }
  if (plan.epoch != epoch_) {
    report_.Fail("a plan of epoch {} in epoch {}", plan.epoch.value, epoch_.value);
  }
  mirror_.Apply(plan);
  for (const step::StepRow& row : plan.rows) sequences.insert(mirror_.at(row.slot).sequence);
  if (std::ssize(in_flight_) > settings_.limits.max_steps_in_flight) {
    report_.Fail("{} steps in flight", in_flight_.size());
  }
  Count(plan);
  report_.Trace("submit {}", step::Describe(plan));
  RETURN_IF_ERROR(results_->Expect(plan.id));
  digest_ = Mix(digest_, std::hash<std::string>()(wire::EncodePlan(plan)));
  step::StepPlan sent = plan;
  SpoilPlan(sent);
  for (const ProcessPtr& process : processes_) {
    if (process->attached) SendPlan(process, sent);
  }
  SendOldResult(plan.id);
  return absl::OkStatus();
}

void SimCluster::SendOldResult(StepId step) {
  const auto old = std::find_if(
      past_results_.begin(), past_results_.end(),
      [&](const step::StepResult& past) { return past.id == step && past.epoch < epoch_; });
  if (old == past_results_.end() || !TakePending(Fault::kOldResult)) return;
  const ProcessPtr& last =
      processes_[static_cast<size_t>(settings_.layout.RankOf(settings_.layout.stages - 1, 0))];
  if (last->attached) {
    SendUp(last, {FromRank::Kind::kResult, old->epoch, wire::EncodeResult(*old)});
  }
}

absl::StatusOr<step::StepResult> SimCluster::Await(StepId step, absl::Time deadline) {
  if (coordinator_lost_) return Dead();
  if (in_flight_.empty() || in_flight_.front().first != step) {
    report_.Fail("the engine awaits step {}, which is not the oldest in flight", step.value);
    return Internal("step {} is not in flight", step.value);
  }
  while (true) {
    if (coordinator_lost_) return Dead();
    absl::StatusOr<step::StepResult> result = results_->Await(step, absl::InfinitePast());
    if (result.ok()) {
      CheckResult(*result);
      in_flight_.pop_front();
      SpoilResult(*result);
      return result;
    }
    if (report_.failed() || !results_->failure().ok()) return result.status();
    if (!loop_.RunNext(deadline)) return result.status();
  }
}

void SimCluster::Count(const step::StepPlan& plan) {
  ++num_steps_;
  for (const step::SlotOpen& opened : plan.opened) {
    if (!opened_.insert(opened.sequence).second) ++num_preemptions_;
    const auto row = std::find_if(plan.rows.begin(), plan.rows.end(),
                                  [&](const step::StepRow& r) { return r.slot == opened.slot; });
    if (row != plan.rows.end() && row->first_position > 0) ++num_reused_;
  }
}

// What was merged is what this epoch's group computed for this step, all of its ranks.
void SimCluster::CheckResult(const step::StepResult& result) {
  const Group& group = *groups_.at(epoch_.value);
  const auto computed = group.computed.find(result.id.value);
  if (result.epoch != epoch_) {
    report_.Fail("a result of epoch {} was accepted in epoch {}", result.epoch.value, epoch_.value);
  } else if (computed == group.computed.end()) {
    report_.Fail("a result of step {} was accepted that this epoch has not computed",
                 result.id.value);
  } else if (computed->second != result.samples) {
    report_.Fail("a result of step {} was accepted that is not what this epoch computed",
                 result.id.value);
  }
  for (const ProcessPtr& member : group.members) {
    const bool done = member->plans.empty() || member->plans.front().id > result.id;
    const bool this_epoch = member->epoch == epoch_;
    if (this_epoch && member->serves && !done) {
      report_.Fail("step {} was taken for done before rank {} had done it", result.id.value,
                   member->rank);
    }
  }
}

int32_t SimCluster::NumBlocksHeld() const {
  std::set<BlockId> held;
  for (int32_t slot = 0; slot < mirror_.num_slots(); ++slot) {
    const std::vector<BlockId>& blocks = mirror_.at(SlotId{slot}).blocks;
    held.insert(blocks.begin(), blocks.end());
  }
  return static_cast<int32_t>(held.size());
}

void SimCluster::OnMessage(const ProcessPtr& process, const FromRank& message) {
  using Kind = FromRank::Kind;
  switch (message.kind) {
    case Kind::kLoaded:
      return peers_->SetLoaded(process->rank, 0, 0, 0);
    case Kind::kReady:
      if (message.epoch == epoch_) peers_->SetReady(process->rank, {});
      return;
    case Kind::kResult:
      return OnResult(process, message);
    case Kind::kFailed:
      return Lose(message.epoch, Annotate(message.why, peers_->NameOf(process->rank)));
    case Kind::kEpochEnded:
      if (message.epoch.value == epoch_.value - 1) peers_->SetEpochEnded(process->rank);
      return;
  }
}

void SimCluster::OnResult(const ProcessPtr& process, const FromRank& message) {
  absl::StatusOr<step::StepResult> result = wire::DecodeResult(message.bytes);
  if (!result.ok()) return Lose(epoch_, Annotate(result.status(), peers_->NameOf(process->rank)));
  if (!result->samples.empty()) past_results_.push_back(*result);
  if (past_results_.size() > 64) past_results_.pop_front();
  if (settings_.plant == Plant::kRestampsOldResults) result->epoch = epoch_;
  absl::Status added = results_->Add(Rank{process->rank}, *std::move(result));
  if (!added.ok()) Lose(epoch_, std::move(added));
}

void SimCluster::OnStreamClosed(const ProcessPtr& process) {
  if (!process->attached) return;
  process->attached = false;
  if (peers_->HasLoaded(process->rank)) {
    Lose(epoch_, Unavailable("rank {} was lost: its stream closed", process->rank));
  }
  loop_.After(random_.Between(absl::ZeroDuration(), absl::Milliseconds(100)),
              [this, rank = process->rank, incarnation = incarnation_] {
                if (incarnation == incarnation_) peers_->SetAbsent(rank);
              });
}

void SimCluster::Lose(Epoch lost, const absl::Status& why) {
  if (lost != epoch_) return;
  const bool is_news = peers_->loss().ok();
  if (!peers_->Lose(why)) return Fail(why);
  results_->Fail(why);
  if (!is_news) return;
  ++num_losses_;
  report_.Trace("epoch {} is lost: {}", lost.value, Message(why));
  if (faults_while_recovering_ > 0 && random_.OneIn(2)) {
    --faults_while_recovering_;
    loop_.After(random_.Between(absl::ZeroDuration(), absl::Seconds(4)),
                [this] { Inject(random_.PickOf(kFaults)); });
  }
}

void SimCluster::Fail(const absl::Status& why) {
  results_->Fail(why);
  peers_->Fail(why);
}

void SimCluster::Abort(Epoch epoch) noexcept {
  if (epoch <= epoch_) Fail(Unavailable("epoch {} was aborted", epoch.value));
}

absl::Status SimCluster::CountRestart(const absl::Status& why) {
  const absl::Time now = loop_.Now();
  while (!restarts_.empty() && now - restarts_.front() > settings_.restart_window) {
    restarts_.pop_front();
  }
  if (std::ssize(restarts_) >= settings_.max_restarts) return why;
  restarts_.push_back(now);
  return absl::OkStatus();
}

absl::Status SimCluster::WaitFor(Peers::Phase phase, absl::Time deadline) {
  while (true) {
    if (coordinator_lost_) return Dead();
    const absl::Status status = peers_->WaitFor(phase, absl::InfinitePast());
    const bool waits = absl::IsDeadlineExceeded(status) && peers_->loss().ok();
    if (!waits || report_.failed()) return status;
    if (!loop_.RunNext(deadline)) return status;
  }
}

absl::Status SimCluster::BeginNextEpoch(const absl::Status& why) {
  const Epoch lost = epoch_;
  Lose(lost, why);
  ++epoch_.value;
  peers_->NextEpoch();
  RETURN_IF_ERROR(peers_->failure());
  Broadcast({ToRank::Kind::kEndEpoch, lost});
  return absl::OkStatus();
}

absl::Status SimCluster::Meet() {
  RETURN_IF_ERROR(WaitFor(Peers::Phase::kAttached, loop_.Now() + kJoinTimeout));
  RETURN_IF_ERROR(WaitFor(Peers::Phase::kLoaded, loop_.Now() + kLoadPatience));
  RETURN_IF_ERROR(StartEpoch());
  results_->Restart(epoch_);
  RETURN_IF_ERROR(peers_->loss());
  while (groups_.size() > 2) groups_.erase(groups_.begin());
  mirror_ = step::SlotTable(settings_.limits);
  report_.Trace("epoch {} serves", epoch_.value);
  return absl::OkStatus();
}

absl::Status SimCluster::StartEpoch() {
  if (settings_.plant != Plant::kForgetsKnownEpochs) {
    epoch_.value = std::max(epoch_.value, known_epoch_.value + 1);
  }
  groups_[epoch_.value] = std::make_shared<Group>(epoch_, settings_.layout);
  Broadcast({ToRank::Kind::kStart, epoch_});
  return WaitFor(Peers::Phase::kReady, loop_.Now() + 2 * limits::kJoinGroupPatience);
}

absl::StatusOr<Epoch> SimCluster::Recover(const absl::Status& why) {
  absl::Status loss = why;
  lost_in_flight_.clear();
  for (const auto& [step, ids] : in_flight_) lost_in_flight_.insert(ids.begin(), ids.end());
  in_flight_.clear();
  opened_.clear();
  do {
    if (coordinator_lost_) return Dead();
    absl::Status status = peers_->failure();
    if (status.ok()) status = CountRestart(loss);
    if (loop_.Now() > settings_.latest) report_.Fail("a recovery that never ends");
    if (report_.failed()) status = Internal("{}", report_.failure());
    if (!status.ok()) {
      Fail(status);
      return status;
    }
    report_.Trace("recovering from epoch {}: {}", epoch_.value, Message(loss));
    loss = BeginNextEpoch(loss);
    if (loss.ok()) loss = Meet();
  } while (!loss.ok());
  return epoch_;
}

void SimCluster::BeginAnew() {
  const int32_t world = settings_.layout.world_size();
  peers_.emplace(engine::PeerIdentity{0, world, "sim", 0, "build", "settings", "checkpoint", ""},
                 /*allow_shared_device=*/false, incarnation_);
  results_.emplace(world, epoch_);
}

// Nobody is told: a connection's end is noticed, and not before what was sent on it has come.
void SimCluster::KillCoordinator() {
  if (coordinator_lost_) return;
  report_.Trace("the coordinator dies");
  coordinator_lost_ = true;
  // The note is written without waiting for the disk.
  noted_epoch_.value = epoch_.value - (random_.OneIn(4) ? 1 : 0);
  for (const ProcessPtr& process : processes_) {
    if (!process->attached) continue;
    process->attached = false;
    if (process->dark) continue;
    const absl::Time noticed =
        loop_.Now() + random_.Between(absl::ZeroDuration(), absl::Milliseconds(400));
    TellOfStreamEnd(process, std::max(process->last_down, noticed));
  }
}

absl::StatusOr<Epoch> SimCluster::TakeOver() {
  CHECK(coordinator_lost_, "there is one");
  coordinator_lost_ = false;
  ++incarnation_;
  report_.Trace("incarnation {} of the coordinator takes over", incarnation_);
  epoch_.value = noted_epoch_.value + 1;
  known_epoch_ = Epoch{0};
  BeginAnew();
  peers_->SetServed();
  in_flight_.clear();
  lost_in_flight_.clear();
  opened_.clear();
  absl::Status why =
      CountRestart(Unavailable("incarnation {} of the coordinator is gone", incarnation_ - 1));
  if (!why.ok()) {
    Fail(why);
    return why;
  }
  if (why = Meet(); !why.ok()) return Recover(why);
  return epoch_;
}

void SimCluster::Broadcast(const ToRank& message) {
  for (const ProcessPtr& process : processes_) {
    if (process->attached) SendDown(process, message);
  }
}

bool SimCluster::TakePending(Fault fault) {
  const auto found = std::find(pending_.begin(), pending_.end(), fault);
  if (found == pending_.end()) return false;
  pending_.erase(found);
  report_.Trace("fault {} strikes", static_cast<int>(fault));
  return true;
}

void SimCluster::SendPlan(const ProcessPtr& process, const step::StepPlan& plan) {
  ToRank message{ToRank::Kind::kPlan, plan.epoch, wire::EncodePlan(plan)};
  if (TakePending(Fault::kPlanLost)) {
    excused_.insert(epoch_.value);
    return;
  }
  if (TakePending(Fault::kPlanGarbled)) message.bytes = "\xFF\xFF\xFF" + message.bytes;
  if (TakePending(Fault::kPlanTwice)) {
    excused_.insert(epoch_.value);
    SendDown(process, message);
  }
  SendDown(process, std::move(message));
}

// Mistakes in the plans themselves, the same for every rank.
void SimCluster::SpoilPlan(step::StepPlan& plan) {
  if (settings_.plant != Plant::kSwapsTwoBlocks && settings_.plant != Plant::kGivesABlockTwice) {
    return;
  }
  std::vector<BlockId*> blocks;
  for (step::SlotOpen& opened : plan.opened) {
    for (BlockId& block : opened.blocks) blocks.push_back(&block);
  }
  for (step::SlotAppend& append : plan.appended) {
    for (BlockId& block : append.blocks) blocks.push_back(&block);
  }
  if (blocks.empty() || !random_.OneIn(4)) return;
  BlockId& victim = *random_.PickOf(blocks);
  BlockId& other = *random_.PickOf(blocks);
  if (settings_.plant == Plant::kSwapsTwoBlocks) {
    std::swap(victim, other);
  } else {
    victim.value = (victim.value + 1) % settings_.limits.num_blocks;
  }
}

// Mistakes in the merged result, after it was compared.
void SimCluster::SpoilResult(step::StepResult& result) {
  if (result.samples.empty() || !random_.OneIn(8)) return;
  if (settings_.plant == Plant::kSwapsTwoSamples) {
    std::swap(result.samples.front(), result.samples.back());
  } else if (settings_.plant == Plant::kChangesAToken) {
    step::SampleResult& sample = result.samples.front();
    sample.token = sample.token == 'a' ? 'b' : 'a';
  }
}

}  // namespace polyreme::sim
