// The workers' side: processes that their agents replace, and how they come into an epoch and out
// of it, as worker_service and agent have it.
#include "tests/sim/sim_process.h"

#include <utility>

#include "parallel/wire/codec.h"

namespace polyreme::sim {
namespace {

// Until a silent process is killed by its agent.
constexpr absl::Duration kHeartPatience = absl::Seconds(10);
// For a rank to leave a lost epoch; then another process takes its place.
constexpr absl::Duration kEpochEndPatience = absl::Seconds(5);
// Until the stream of a rank's former process is seen to have ended.
constexpr absl::Duration kReplacedPeerPatience = absl::Seconds(12);
constexpr absl::Duration kLook = absl::Milliseconds(20);
// Keepalive: until either side of a dark link takes it for closed.
constexpr absl::Duration kDarkLeast = absl::Seconds(5);
constexpr absl::Duration kDarkMost = absl::Seconds(11);

}  // namespace

void SimCluster::Inject(Fault fault) {
  report_.Trace("fault {} is injected", static_cast<int>(fault));
  const ProcessPtr process = random_.PickOf(processes_);
  switch (fault) {
    case Fault::kDeath:
      return Die(process, "a fault");
    case Fault::kHang:
      return Hang(process);
    case Fault::kError:
      if (process->serves) SendFailed(process, process->epoch, Internal("a worker's error"));
      return;
    case Fault::kDarkLink:
      return Darken(process);
    case Fault::kCoordinatorDeath:
      return KillCoordinator();
    case Fault::kClockJump:
      return loop_.Jump(random_.Between(absl::Seconds(1), absl::Seconds(150)));
    case Fault::kPlanLost:
    case Fault::kPlanTwice:
    case Fault::kPlanGarbled:
    case Fault::kResultLost:
    case Fault::kResultTwice:
    case Fault::kResultGarbled:
    case Fault::kOldResult:
    case Fault::kSlowStep:
      pending_.push_back(fault);
      return;
  }
}

void SimCluster::Spawn(int32_t rank) {
  const auto process = std::make_shared<Process>(rank, next_life_++, settings_, random_.Next());
  processes_[static_cast<size_t>(rank)] = process;
  report_.Trace("rank {} starts as process {}", rank, process->life);
  loop_.After(random_.Between(absl::Milliseconds(10), absl::Milliseconds(500)),
              [this, process] { TryJoin(process, kReplacedPeerPatience / kLook); });
}

// Looks are counted, not time: what a coordinator that stands still misses is not held against it.
void SimCluster::TryJoin(const ProcessPtr& process, int64_t looks_left) {
  if (!process->alive) return;
  if (process->hung || coordinator_lost_) {
    loop_.After(absl::Milliseconds(100), [=, this] { TryJoin(process, looks_left); });
    return;
  }
  const absl::StatusOr<int64_t> ticket =
      peers_->Join({process->rank, settings_.layout.world_size(), "sim", process->life, "build",
                    "settings", "checkpoint", ""});
  if (absl::IsAlreadyExists(ticket.status()) && looks_left > 0) {
    loop_.After(kLook, [=, this] { TryJoin(process, looks_left - 1); });
    return;
  }
  if (!ticket.ok()) {
    if (peers_->failure().ok()) {
      report_.Fail("rank {} may not come back: {}", process->rank, Message(ticket.status()));
    }
    return;
  }
  process->ticket = *ticket;
  known_epoch_ = std::max(known_epoch_, process->known_epoch);
  const absl::Duration takes = random_.Between(absl::ZeroDuration(), absl::Milliseconds(50));
  loop_.After(takes, [this, process, incarnation = incarnation_] { Attach(process, incarnation); });
  if (random_.OneIn(8)) {
    loop_.After(random_.Between(absl::ZeroDuration(), takes),
                [this, process] { Die(process, "it attaches"); });
  }
  // The worst time for what one before it has sent.
  if (const auto late = late_streams_.extract(process->rank); !late.empty()) {
    loop_.After(random_.Between(absl::ZeroDuration(), takes), late.mapped());
  }
}

void SimCluster::Attach(const ProcessPtr& process, int64_t incarnation) {
  if (!process->alive) return AttachAfterDeath(process, incarnation);
  if (process->hung) {
    loop_.After(absl::Milliseconds(100), [=, this] { Attach(process, incarnation); });
    return;
  }
  if (coordinator_lost_ || incarnation != incarnation_) {
    return TryJoin(process, kReplacedPeerPatience / kLook);
  }
  if (absl::Status s = peers_->Attach(process->rank, process->ticket); !s.ok()) {
    report_.Fail("rank {} may not attach: {}", process->rank, Message(s));
    return;
  }
  process->attached = true;
  process->adrift = process->dark = false;
  ++process->stream;
  if (process->loaded) return SendUp(process, {FromRank::Kind::kLoaded});
  if (process->loading) return;
  process->loading = true;
  loop_.After(random_.Between(absl::Milliseconds(50), absl::Seconds(2)), [this, process] {
    if (!process->alive) return;
    process->loaded = true;
    SendUp(process, {FromRank::Kind::kLoaded});
  });
}

// Its stream is on the way; whoever is started in its place may have joined when it comes.
void SimCluster::AttachAfterDeath(const ProcessPtr& process, int64_t incarnation) {
  const auto attach = [=, this] {
    if (coordinator_lost_ || incarnation != incarnation_) return;
    const int64_t ticket = settings_.plant == Plant::kTakesAnyTicket
                               ? peers_->snapshot()[static_cast<size_t>(process->rank)].ticket
                               : process->ticket;
    if (!peers_->Attach(process->rank, ticket).ok()) return;
    process->attached = true;
    loop_.After(random_.Between(absl::ZeroDuration(), absl::Milliseconds(400)),
                [this, process] { OnStreamClosed(process); });
  };
  if (random_.OneIn(2)) return loop_.After(absl::Milliseconds(10), attach);
  late_streams_[process->rank] = attach;
}

void SimCluster::Die(const ProcessPtr& process, const char* why) {
  if (!process->alive) return;
  report_.Trace("process {} of rank {} dies: {}", process->life, process->rank, why);
  process->alive = false;
  const absl::Time noticed =
      loop_.Now() + random_.Between(absl::ZeroDuration(), absl::Milliseconds(400));
  loop_.At(std::max(process->last_up, noticed), [this, process] { OnStreamClosed(process); });
  loop_.After(random_.Between(absl::Milliseconds(20), absl::Milliseconds(1500)),
              [this, rank = process->rank] { Spawn(rank); });
  if (!process->serves) return;
  if (settings_.plant == Plant::kAnswersForTheDead && !process->plans.empty()) {
    SendResult(process, {process->plans.front().id, process->epoch, {}, {}});
  }
  // Peers that wait in a collective for it find out.
  for (const ProcessPtr& peer : processes_) {
    if (peer == process || !peer->serves || peer->epoch != process->epoch) continue;
    if (random_.OneIn(3)) continue;
    loop_.After(random_.Between(absl::ZeroDuration(), absl::Milliseconds(500)),
                [this, peer, epoch = process->epoch, rank = process->rank] {
                  if (!peer->serves || peer->epoch != epoch) return;
                  SendFailed(peer, epoch, Unavailable("lost rank {} in a collective", rank));
                });
  }
}

void SimCluster::Hang(const ProcessPtr& process) {
  if (!process->alive || process->hung) return;
  report_.Trace("process {} of rank {} hangs", process->life, process->rank);
  process->hung = true;
  if (random_.OneIn(3)) {
    loop_.After(random_.Between(absl::Milliseconds(10), absl::Seconds(9)),
                [this, process] { WakeUp(process); });
    return;
  }
  if (settings_.plant == Plant::kNobodyWatchesForHangs) return;
  loop_.After(kHeartPatience, [this, process] {
    if (process->hung) Die(process, "its agent killed it");
  });
}

void SimCluster::WakeUp(const ProcessPtr& process) {
  if (!process->alive) return;
  report_.Trace("process {} of rank {} goes on", process->life, process->rank);
  process->hung = false;
  std::deque<ToRank> backlog = std::move(process->backlog);
  process->backlog.clear();
  for (const ToRank& message : backlog) Deliver(process, message);
  if (!process->serves || process->plans.empty()) return;
  TryStep(process);
  const auto group = groups_.find(process->epoch.value);
  if (group == groups_.end() || process->plans.empty()) return;
  TryCompute(*group->second, settings_.layout.StageOf(process->rank),
             process->plans.front().id.value);
}

absl::Duration SimCluster::Delay() {
  if (random_.OneIn(200)) return random_.Between(absl::ZeroDuration(), absl::Seconds(2));
  return random_.Between(absl::Microseconds(50), settings_.network_most);
}

void SimCluster::SendDown(const ProcessPtr& process, ToRank message) {
  if (process->dark) return;
  process->last_down = std::max(process->last_down, loop_.Now() + Delay());
  loop_.At(process->last_down,
           [this, process, stream = process->stream, message = std::move(message)] {
             if (process->stream == stream) Deliver(process, message);
           });
}

// What is on its way is lost, too. Each side finds out by itself.
void SimCluster::Darken(const ProcessPtr& process) {
  if (!process->attached || process->dark) return;
  report_.Trace("the link of rank {} goes dark", process->rank);
  process->dark = true;
  ++process->stream;
  loop_.After(random_.Between(kDarkLeast, kDarkMost), [this, process, stream = process->stream] {
    if (process->stream == stream) OnStreamClosed(process);
  });
  TellOfStreamEnd(process, loop_.Now() + random_.Between(kDarkLeast, kDarkMost));
}

// Unless it has another stream by then.
void SimCluster::TellOfStreamEnd(const ProcessPtr& process, absl::Time time) {
  loop_.At(time, [this, process, stream = process->stream] {
    if (process->stream == stream) Deliver(process, {ToRank::Kind::kStreamEnded, {}});
  });
}

void SimCluster::Deliver(const ProcessPtr& process, const ToRank& message) {
  if (!process->alive) return;
  if (process->hung || process->leaving) {
    process->backlog.push_back(message);
    return;
  }
  Handle(process, message);
}

void SimCluster::Handle(const ProcessPtr& process, const ToRank& message) {
  switch (message.kind) {
    case ToRank::Kind::kStart:
      return HandleStart(process, message.epoch);
    case ToRank::Kind::kPlan:
      return HandlePlan(process, message);
    case ToRank::Kind::kEndEpoch:
      return HandleEndEpoch(process, message.epoch);
    case ToRank::Kind::kStreamEnded:
      return HandleStreamEnded(process);
  }
}

void SimCluster::HandleStart(const ProcessPtr& process, Epoch epoch) {
  if (process->starting || process->serves || !process->loaded) {
    report_.Fail("rank {}: a start order of epoch {} came out of turn", process->rank, epoch.value);
    return;
  }
  if (epoch <= process->known_epoch) {
    report_.Fail("rank {}: epoch {} is to start, and it has heard of epoch {}", process->rank,
                 epoch.value, process->known_epoch.value);
    return;
  }
  process->epoch = process->known_epoch = epoch;
  process->starting = true;
  loop_.After(random_.Between(absl::Milliseconds(5), absl::Milliseconds(300)),
              [this, process, epoch] { JoinGroup(process, epoch); });
}

void SimCluster::HandlePlan(const ProcessPtr& process, const ToRank& message) {
  absl::StatusOr<step::StepPlan> plan = wire::DecodePlan(message.bytes);
  if (!plan.ok()) return Die(process, "it cannot read a plan");
  if (!process->serves) {
    return SendFailed(process, process->epoch, FailedPrecondition("a step without a start"));
  }
  process->plans.push_back(*std::move(plan));
  if (std::ssize(process->plans) > settings_.limits.max_steps_in_flight + 1 &&
      !excused_.contains(process->epoch.value)) {
    report_.Fail("rank {} was sent {} steps", process->rank, process->plans.size());
  }
  TryStep(process);
}

void SimCluster::HandleEndEpoch(const ProcessPtr& process, Epoch epoch) {
  process->known_epoch = std::max(process->known_epoch, epoch);
  if (!process->loaded) return;
  LeaveEpoch(process, [=, this] { SendUp(process, {FromRank::Kind::kEpochEnded, epoch}); });
}

// It dials again, with what it has.
void SimCluster::HandleStreamEnded(const ProcessPtr& process) {
  if (process->adrift) return;
  process->adrift = true;
  report_.Trace("rank {} has lost its coordinator", process->rank);
  LeaveEpoch(process, [=, this] { TryJoin(process, kReplacedPeerPatience / kLook); });
}

void SimCluster::LeaveEpoch(const ProcessPtr& process, std::function<void()> then) {
  process->starting = process->serves = false;
  process->plans.clear();
  process->has_accepted = false;
  process->leaving = true;
  const absl::Duration takes = random_.OneIn(30)
                                   ? absl::Seconds(60)
                                   : random_.Between(absl::Milliseconds(1), absl::Seconds(1));
  if (takes > kEpochEndPatience) {
    loop_.After(kEpochEndPatience, [this, process] { Die(process, "it cannot leave its epoch"); });
    return;
  }
  loop_.After(takes, [this, process, then = std::move(then)] {
    if (!process->alive) return;
    process->leaving = false;
    then();
    if (process->hung) return;
    std::deque<ToRank> backlog = std::move(process->backlog);
    process->backlog.clear();
    for (const ToRank& message : backlog) Deliver(process, message);
  });
}

void SimCluster::JoinGroup(const ProcessPtr& process, Epoch epoch) {
  if (!process->alive || !process->starting || process->epoch != epoch) return;
  if (process->hung) {
    loop_.After(absl::Milliseconds(100), [=, this] { JoinGroup(process, epoch); });
    return;
  }
  Group& group = *groups_.at(epoch.value);
  group.members[static_cast<size_t>(process->rank)] = process;
  for (const ProcessPtr& member : group.members) {
    if (member == nullptr || !member->alive || !member->starting || member->epoch != epoch) return;
  }
  for (const ProcessPtr& member : group.members) {
    member->starting = false;
    member->serves = true;
    member->plans.clear();
    member->has_accepted = false;
    member->shard.BeginEpoch();
    SendUp(member, {FromRank::Kind::kReady, epoch});
  }
}

void SimCluster::SendUp(const ProcessPtr& process, FromRank message) {
  if (process->dark) return;
  process->last_up = std::max(process->last_up, loop_.Now() + Delay());
  loop_.At(process->last_up,
           [this, process, stream = process->stream, message = std::move(message)] {
             if (process->attached && process->stream == stream) OnMessage(process, message);
           });
}

void SimCluster::SendFailed(const ProcessPtr& process, Epoch epoch, absl::Status why) {
  if (!process->alive) return;
  SendUp(process, {FromRank::Kind::kFailed, epoch, "", std::move(why)});
}

void SimCluster::SendResult(const ProcessPtr& process, step::StepResult result) {
  result.timings = {{Rank{process->rank}, absl::Milliseconds(1), absl::ZeroDuration()}};
  if (TakePending(Fault::kResultLost)) return;
  const int64_t step = result.id.value;
  FromRank message{FromRank::Kind::kResult, result.epoch, wire::EncodeResult(result)};
  if (TakePending(Fault::kResultGarbled)) message.bytes = "\xFF\xFF\xFF" + message.bytes;
  if (TakePending(Fault::kResultTwice)) SendUp(process, message);
  SendUp(process, std::move(message));
  if (settings_.plant == Plant::kRepeatsAResult && step % 8 == 7) {
    result.id.value = step + 1;
    SendUp(process, {FromRank::Kind::kResult, result.epoch, wire::EncodeResult(result)});
  }
}

}  // namespace polyreme::sim
