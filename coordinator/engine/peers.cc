#include "coordinator/engine/peers.h"

#include <algorithm>
#include <string_view>

#include "parallel/base/clock.h"

namespace polyreme::engine {
namespace {

// The first line that differs, as "max_model_len=4096 here, max_model_len=8192 there".
std::string FirstDifference(std::string_view ours, std::string_view theirs) {
  const auto next_line = [](std::string_view& text) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    return line;
  };
  while (!ours.empty() || !theirs.empty()) {
    const std::string_view our_line = next_line(ours);
    const std::string_view their_line = next_line(theirs);
    if (our_line != their_line) {
      return fmt::format("'{:.120}' where rank 0 has '{:.120}'", their_line, our_line);
    }
  }
  return "no line";
}

constexpr std::string_view kDeeds[] = {"come", "join", "attach", "load its weights",
                                       "meet its process group"};

}  // namespace

Peers::Peers(PeerIdentity expected, bool allow_shared_device, int64_t incarnation)
    : expected_(std::move(expected)),
      allow_shared_device_(allow_shared_device),
      last_ticket_(incarnation << 32) {
  CHECK(expected_.world_size > 0);
  peers_.resize(static_cast<size_t>(expected_.world_size));
}

absl::Status Peers::Check(const PeerIdentity& peer) const {
  const std::string who =
      fmt::format("rank {} on host {} (pid {})", peer.rank, peer.host, peer.pid);
  if (peer.world_size != expected_.world_size) {
    return FailedPrecondition("{} was started as one of {} ranks, rank 0 on host {} as one of {}",
                              who, peer.world_size, expected_.host, expected_.world_size);
  }
  if (peer.rank < 0 || peer.rank >= expected_.world_size) {
    return FailedPrecondition("{}: expected a rank from 0 to {}", who, expected_.world_size - 1);
  }
  const Peer& known = peers_[static_cast<size_t>(peer.rank)];
  // One that has joined and has no stream yet may have died in between, and nothing would tell.
  const bool can_be_gone = has_served_ && known.phase == Phase::kJoined;
  if (known.phase != Phase::kAbsent && !can_be_gone) {
    return AlreadyExists("{} came, but rank {} is already on host {} (pid {})", who, peer.rank,
                         known.identity.host, known.identity.pid);
  }
  if (peer.build_id != expected_.build_id) {
    return FailedPrecondition("{} runs another binary: build {:.16}, rank 0 on host {} runs {:.16}",
                              who, peer.build_id, expected_.host, expected_.build_id);
  }
  if (peer.settings != expected_.settings) {
    return FailedPrecondition("{} was started with other settings: {}", who,
                              FirstDifference(expected_.settings, peer.settings));
  }
  if (peer.checkpoint != expected_.checkpoint) {
    return FailedPrecondition(
        "{} sees another checkpoint: fingerprint {:.16}, rank 0 on host {} sees {:.16}", who,
        peer.checkpoint, expected_.host, expected_.checkpoint);
  }
  if (peer.device.empty() || allow_shared_device_) return absl::OkStatus();
  for (const Peer& other : peers_) {
    if (&other == &known || other.phase == Phase::kAbsent) continue;
    if (other.identity.device != peer.device) continue;
    return FailedPrecondition(
        "{} computes on {}, and so does rank {} (pid {}): give each rank a GPU of its own "
        "(--local-rank, CUDA_VISIBLE_DEVICES), or allow it with --allow-shared-gpu",
        who, peer.device, other.identity.rank, other.identity.pid);
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> Peers::Join(const PeerIdentity& peer) {
  const std::lock_guard lock(mutex_);
  if (!failure_.ok()) return failure_;
  if (absl::Status status = Check(peer); !status.ok()) {
    // A cluster that serves is not ended by a stranger who comes late.
    if (has_served_ || AllAt(Phase::kReady)) return status;
    failure_ = status;
    changed_.notify_all();
    return status;
  }
  Peer& known = peers_[static_cast<size_t>(peer.rank)];
  known.identity = peer;
  known.phase = Phase::kJoined;
  known.ticket = ++last_ticket_;
  changed_.notify_all();
  return known.ticket;
}

absl::Status Peers::Attach(int32_t rank, int64_t ticket) {
  const std::lock_guard lock(mutex_);
  if (rank < 0 || rank >= std::ssize(peers_) ||
      peers_[static_cast<size_t>(rank)].phase != Phase::kJoined) {
    return FailedPrecondition("rank {} has not joined, or has a stream already", rank);
  }
  Peer& peer = peers_[static_cast<size_t>(rank)];
  if (peer.ticket != ticket) {
    return FailedPrecondition("rank {} attaches with ticket {:#x}, and joined last with {:#x}",
                              rank, ticket, peer.ticket);
  }
  peer.phase = Phase::kAttached;
  changed_.notify_all();
  return absl::OkStatus();
}

void Peers::SetProgress(int32_t rank, int64_t bytes_done, int64_t bytes_total) {
  const std::lock_guard lock(mutex_);
  Peer& peer = peers_[static_cast<size_t>(rank)];
  peer.bytes_done = bytes_done;
  peer.bytes_total = bytes_total;
}

void Peers::SetLoaded(int32_t rank, int64_t weight_bytes, int64_t kv_bytes_per_block,
                      int64_t kv_bytes_budget, int32_t num_blocks_held) {
  const std::lock_guard lock(mutex_);
  Peer& peer = peers_[static_cast<size_t>(rank)];
  peer.memory.weight_bytes = weight_bytes;
  peer.kv_bytes_per_block = kv_bytes_per_block;
  peer.kv_bytes_budget = kv_bytes_budget;
  peer.num_blocks_held = num_blocks_held;
  peer.phase = Phase::kLoaded;
  changed_.notify_all();
}

void Peers::SetReady(int32_t rank, const PeerMemory& memory) {
  const std::lock_guard lock(mutex_);
  Peer& peer = peers_[static_cast<size_t>(rank)];
  peer.memory = memory;
  peer.phase = Phase::kReady;
  changed_.notify_all();
}

void Peers::Fail(absl::Status why) {
  CHECK(!why.ok());
  const std::lock_guard lock(mutex_);
  if (!failure_.ok()) return;
  failure_ = std::move(why);
  changed_.notify_all();
}

bool Peers::Lose(const absl::Status& why) {
  CHECK(!why.ok());
  const std::lock_guard lock(mutex_);
  if (!has_served_) return false;
  if (loss_.ok()) loss_ = why;
  changed_.notify_all();
  return true;
}

void Peers::SetServed() {
  const std::lock_guard lock(mutex_);
  has_served_ = true;
}

bool Peers::has_served() const {
  const std::lock_guard lock(mutex_);
  return has_served_;
}

bool Peers::HasLoaded(int32_t rank) const {
  const std::lock_guard lock(mutex_);
  return peers_[static_cast<size_t>(rank)].phase >= Phase::kLoaded;
}

void Peers::SetAbsent(int32_t rank) {
  const std::lock_guard lock(mutex_);
  Peer& peer = peers_[static_cast<size_t>(rank)];
  peer.phase = Phase::kAbsent;
  peer.bytes_done = peer.bytes_total = 0;
  changed_.notify_all();
}

void Peers::WaitUntilAbsent(int32_t rank, absl::Time deadline) const {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, ToSteady(deadline), [&] {
    return !failure_.ok() || rank < 0 || rank >= std::ssize(peers_) ||
           peers_[static_cast<size_t>(rank)].phase == Phase::kAbsent;
  });
}

void Peers::NextEpoch() {
  const std::lock_guard lock(mutex_);
  loss_ = absl::OkStatus();
  for (Peer& peer : peers_) peer.phase = std::min(peer.phase, Phase::kAttached);
}

void Peers::SetEpochEnded(int32_t rank) {
  const std::lock_guard lock(mutex_);
  Peer& peer = peers_[static_cast<size_t>(rank)];
  if (peer.phase == Phase::kAttached) peer.phase = Phase::kLoaded;
  changed_.notify_all();
}

absl::Status Peers::loss() const {
  const std::lock_guard lock(mutex_);
  return failure_.ok() ? loss_ : failure_;
}

bool Peers::AllAt(Phase phase) const {
  return std::all_of(peers_.begin(), peers_.end(), [&](const Peer& p) { return p.phase >= phase; });
}

absl::Status Peers::WaitFor(Phase phase, absl::Time deadline) const {
  std::unique_lock lock(mutex_);
  const bool woken = changed_.wait_until(
      lock, ToSteady(deadline), [&] { return !failure_.ok() || !loss_.ok() || AllAt(phase); });
  if (!failure_.ok()) return failure_;
  if (!loss_.ok()) return loss_;
  if (woken) return absl::OkStatus();
  std::string missing;
  for (size_t r = 0; r < peers_.size(); ++r) {
    if (peers_[r].phase >= phase) continue;
    missing += fmt::format("{}{}", missing.empty() ? "" : ", ", r);
    if (!peers_[r].identity.host.empty())
      missing += fmt::format(" (host {})", peers_[r].identity.host);
  }
  return DeadlineExceeded("of {} ranks these did not {} in time: rank {}", peers_.size(),
                          kDeeds[static_cast<size_t>(phase)], missing);
}

absl::Status Peers::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

std::vector<Peers::Peer> Peers::snapshot() const {
  const std::lock_guard lock(mutex_);
  return peers_;
}

std::string Peers::NameOf(int32_t rank) const {
  const std::lock_guard lock(mutex_);
  const PeerIdentity& id = peers_[static_cast<size_t>(rank)].identity;
  return fmt::format("rank {} (host {}, pid {})", rank, id.host, id.pid);
}

}  // namespace polyreme::engine
