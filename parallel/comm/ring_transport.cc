// Sleeping without losing a wake-up: a rank that found nothing to do sets `asleep`, looks once
// more, and sleeps only if its doorbell still has the value from before that look. A peer first
// does its work, then moves the doorbell, then reads `asleep`. All of these are sequentially
// consistent, so either the sleeper sees the work or the peer sees the sleeper.

#include "parallel/comm/ring_transport.h"

#include <linux/futex.h>
#include <poll.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "parallel/base/clock.h"
#include "parallel/base/limits.h"
#include "parallel/comm/group_errors.h"
#include "parallel/comm/wait_board.h"

namespace polyreme::comm {
namespace {

constexpr int kMinSpins = 4;
constexpr int kMaxSpins = 256;  // about 10 us

void Relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// False if nobody woke us in time. Not the private kind of futex: the word may be in another
// process too.
bool FutexWait(const std::atomic<uint32_t>& word, uint32_t value, absl::Duration at_most) {
  const timespec timeout = absl::ToTimespec(at_most);
  return ::syscall(SYS_futex, &word, FUTEX_WAIT, value, &timeout, nullptr, 0) == 0 ||
         errno != ETIMEDOUT;
}
void FutexWake(const std::atomic<uint32_t>& word) {
  ::syscall(SYS_futex, &word, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}

launch::Proof ProofOf(const SegmentHeader& header, int rank, const std::string& job_token) {
  std::array<std::byte, sizeof(launch::Nonce) + sizeof(int32_t)> transcript;
  const int32_t place = rank;
  std::memcpy(transcript.data(), header.nonce.data(), sizeof(header.nonce));
  std::memcpy(transcript.data() + sizeof(header.nonce), &place, sizeof(place));
  return launch::Prove(job_token, "ring member", transcript);
}

}  // namespace

RingTransport::RingTransport(std::shared_ptr<RingSegment> segment, const GroupSpec& group)
    : segment_(std::move(segment)), group_(group), pump_(group_, *this), spin_limit_(kMaxSpins) {}

absl::StatusOr<std::unique_ptr<RingTransport>> RingTransport::Join(
    std::shared_ptr<RingSegment> segment, const GroupSpec& group, Peers peers,
    const std::string& job_token) {
  CHECK(segment->size() == group.size() && group.rank >= 0 && group.rank < group.size());
  std::unique_ptr<RingTransport> transport(new RingTransport(std::move(segment), group));
  RETURN_IF_ERROR(transport->TakePlace(peers, job_token));
  return transport;
}

absl::Status RingTransport::TakePlace(Peers peers, const std::string& job_token) {
  RankLine& mine = segment_->line(rank());
  uint32_t absent = RankLine::kAbsent;
  if (!mine.state.compare_exchange_strong(absent, RankLine::kComing)) {
    return AlreadyExists("{}: rank {} has joined twice", group_.name,
                         group_.members[static_cast<size_t>(rank())].value);
  }
  mine.process = peers == Peers::kProcesses ? ::getpid() : 0;
  mine.proof = ProofOf(segment_->header(), rank(), job_token);
  mine.state.store(RankLine::kHere);
  joined_ = true;
  WakeAll();

  const auto missing = [&](int peer) {
    return segment_->line(peer).state.load() < RankLine::kHere;
  };
  const auto step = [&]() -> absl::StatusOr<Progress> {
    for (int peer = 0; peer < size(); ++peer) {
      if (missing(peer)) return Progress::kStuck;
    }
    return Progress::kDone;
  };
  const absl::Status come = Wait(group_.deadline, step, missing);
  if (absl::IsDeadlineExceeded(come)) return DidNotJoin(group_, missing);
  RETURN_IF_ERROR(come);
  RETURN_IF_ERROR(CheckProofs(job_token));
  if (peers == Peers::kProcesses) WatchProcesses();
  return absl::OkStatus();
}

absl::Status RingTransport::CheckProofs(const std::string& job_token) const {
  for (int peer = 0; peer < size(); ++peer) {
    if (launch::SameProof(segment_->line(peer).proof,
                          ProofOf(segment_->header(), peer, job_token))) {
      continue;
    }
    return Unauthenticated("{}: rank {} has another job token", group_.name,
                           group_.members[static_cast<size_t>(peer)].value);
  }
  return absl::OkStatus();
}

void RingTransport::WatchProcesses() {
  processes_.resize(static_cast<size_t>(size()));
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    const long fd = ::syscall(SYS_pidfd_open, segment_->line(peer).process, 0);
    // Kernels without pidfd: a dead peer is then seen at the deadline.
    processes_[static_cast<size_t>(peer)] = UniqueFd(static_cast<int>(fd));
  }
}

RingTransport::~RingTransport() {
  if (!joined_) return;
  segment_->line(rank()).state.store(RankLine::kLeft);
  segment_->header().num_left.fetch_add(1);
  WakeAll();
}

absl::Status RingTransport::Exchange(absl::Span<const Outgoing> sends,
                                     absl::Span<const Incoming> receives, absl::Time deadline) {
  pump_.Start(sends, receives);
  RETURN_IF_ERROR(Until(
      deadline, [&] { return pump_.Step(); }, [&](int peer) { return pump_.IsPending(peer); }));
  counters_.CountOperation();
  for (const Outgoing& send : sends) counters_.CountSent(send.bytes.size());
  for (const Incoming& receive : receives) counters_.CountReceived(receive.bytes.size());
  return absl::OkStatus();
}

absl::StatusOr<size_t> RingTransport::TryWrite(int peer, absl::Span<const std::byte> first,
                                               absl::Span<const std::byte> second) {
  size_t count = segment_->Write(rank(), peer, first.data(), first.size());
  if (count == first.size()) {
    count += segment_->Write(rank(), peer, second.data(), second.size());
  }
  if (count > 0) Wake(peer);
  return count;
}

absl::StatusOr<size_t> RingTransport::TryRead(int peer, absl::Span<std::byte> first,
                                              absl::Span<std::byte> second) {
  size_t count = segment_->Read(peer, rank(), first.data(), first.size());
  if (count == first.size()) count += segment_->Read(peer, rank(), second.data(), second.size());
  if (count > 0) Wake(peer);  // it may be waiting for room
  return count;
}

absl::Status RingTransport::Begin(absl::Time deadline) {
  return WaitForRound(round_++, deadline);
}

void RingTransport::Publish() {
  segment_->line(rank()).round.store(round_, std::memory_order_release);
  WakeAll();
}

absl::Status RingTransport::WaitForAll(absl::Time deadline) {
  return WaitForRound(round_, deadline);
}

absl::Status RingTransport::WaitForRound(uint64_t round, absl::Time deadline) {
  const auto behind = [&](int peer) {
    return segment_->line(peer).round.load(std::memory_order_acquire) < round;
  };
  int peer = 0;
  const auto step = [&]() -> absl::StatusOr<Progress> {
    for (; peer < size(); ++peer) {
      if (peer != rank() && behind(peer)) return Progress::kStuck;
    }
    return Progress::kDone;
  };
  return Until(deadline, step, behind);
}

absl::Status RingTransport::Until(absl::Time deadline, Step step, Awaits awaits) {
  absl::Status status = EndOf();
  if (status.ok()) {
    const absl::StatusOr<Progress> first = step();
    if (first.ok() && *first == Progress::kDone) return absl::OkStatus();
    status = first.status();
  }
  if (status.ok()) {
    const absl::Time start = MonotonicNow();
    status = Wait(deadline, step, awaits);
    counters_.CountWaiting(MonotonicNow() - start);
  }
  if (!status.ok()) Abort(status);
  return status;
}

absl::Status RingTransport::Wait(absl::Time deadline, Step step, Awaits awaits) {
  RankLine& mine = segment_->line(rank());
  Look look = Look::kAtState;
  for (int spins = 0; true;) {
    const bool sleepy = spins >= spin_limit_;
    if (sleepy) mine.asleep.store(1);
    const uint32_t bell = mine.doorbell.load();
    const int gone =
        FindGone(look, awaits);  // before the step: what it sent before it went still counts
    const absl::StatusOr<Progress> progress = step();
    const absl::Status end = EndOf();
    const bool stuck = end.ok() && progress.ok() && *progress == Progress::kStuck;
    // A peer whose process has died cannot ring: look after it when nobody rang for a while.
    look = Look::kAtState;
    if (stuck && sleepy && gone < 0 && !Sleep(bell, deadline)) look = Look::kAtProcess;
    if (sleepy) mine.asleep.store(0);
    RETURN_IF_ERROR(progress.status());
    if (!stuck && group_.board != nullptr) group_.board->Moved();
    if (stuck && sleepy && group_.board != nullptr) group_.board->WaitFor(AwaitedRank(awaits));
    if (*progress == Progress::kDone) {
      // Spinning has paid if it found what it spun for.
      spin_limit_ =
          sleepy ? std::max(spin_limit_ / 2, kMinSpins) : std::min(spin_limit_ * 2, kMaxSpins);
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(end);
    if (stuck && gone >= 0 && awaits(gone)) {
      return Unavailable("{}: rank {} is gone", group_.name,
                         group_.members[static_cast<size_t>(gone)].value);
    }
    spins = stuck ? spins + 1 : 0;
    if (!sleepy) {
      Relax();
      continue;
    }
    if (MonotonicNow() >= deadline) {
      return DeadlineExceeded("{}: waited too long for {}", group_.name, NamePeers(group_, awaits));
    }
  }
}

int32_t RingTransport::AwaitedRank(Awaits awaits) const {
  int peer = 0;
  while (peer + 1 < size() && (peer == rank() || !awaits(peer))) ++peer;
  return group_.members[static_cast<size_t>(peer)].value;
}

bool RingTransport::Sleep(uint32_t bell, absl::Time deadline) {
  const absl::Duration left = deadline - MonotonicNow();
  if (left <= absl::ZeroDuration()) return false;
  return FutexWait(segment_->line(rank()).doorbell, bell,
                   std::min(left, limits::kPeerCheckInterval));
}

int RingTransport::FindGone(Look look, Awaits awaits) const {
  if (look == Look::kAtState && segment_->header().num_left.load() == 0) return -1;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank() || !awaits(peer)) continue;
    if (segment_->line(peer).state.load() == RankLine::kLeft) return peer;
    if (look == Look::kAtState || processes_.empty()) continue;
    pollfd process{processes_[static_cast<size_t>(peer)].get(), POLLIN, 0};
    if (process.fd >= 0 && ::poll(&process, 1, 0) == 1) return peer;
  }
  return -1;
}

void RingTransport::Wake(int peer) {
  RankLine& line = segment_->line(peer);
  line.doorbell.fetch_add(1);
  if (line.asleep.load() != 0) FutexWake(line.doorbell);
}

void RingTransport::WakeAll() {
  for (int peer = 0; peer < size(); ++peer) {
    if (peer != rank()) Wake(peer);
  }
}

void RingTransport::Abort(absl::Status why) noexcept {
  CHECK(!why.ok());
  SegmentHeader& header = segment_->header();
  uint32_t alive = 0;
  {
    const std::lock_guard lock(mutex_);
    if (!header.ended.compare_exchange_strong(alive, 1)) return;
    own_end_ = why;
  }
  header.ended_by = rank();
  const std::string text = Message(why);
  std::memcpy(header.why.data(), text.data(), std::min(text.size(), header.why.size() - 1));
  header.ended.store(2);
  WakeAll();
  Wake(rank());
}

absl::Status RingTransport::EndOf() const {
  const SegmentHeader& header = segment_->header();
  const uint32_t ended = header.ended.load();
  if (ended == 0) return absl::OkStatus();
  const std::lock_guard lock(mutex_);
  if (!own_end_.ok()) return own_end_;
  if (ended == 1) return Unavailable("{}: a peer ended it", group_.name);
  const int32_t by = std::clamp(header.ended_by, 0, size() - 1);
  return Unavailable(
      "{}: rank {} ended it: {}", group_.name, group_.members[static_cast<size_t>(by)].value,
      std::string(header.why.data(), ::strnlen(header.why.data(), header.why.size())));
}

}  // namespace polyreme::comm
