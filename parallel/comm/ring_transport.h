// Transport over memory that all ranks of the group see (threads of a process, processes of a
// host).
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "parallel/comm/message_pump.h"
#include "parallel/comm/ring_segment.h"
#include "parallel/comm/stat_counters.h"
#include "parallel/comm/transport.h"
#include "parallel/comm/unique_fd.h"

namespace polyreme::comm {

// A wait spins for a few microseconds, as far as spinning has paid lately, and then sleeps on this
// rank's doorbell. Peers that are processes are watched: one that dies is seen within
// limits::kPeerCheckInterval.
class RingTransport final : public Transport, public SharedStage, private ByteStreams {
 public:
  enum class Peers { kThreads, kProcesses };

  // Takes this rank's place in the segment and waits until all have taken theirs.
  // Errors: DeadlineExceeded naming who did not come; Unauthenticated for a peer with another job
  // token; AlreadyExists when the place is taken.
  static absl::StatusOr<std::unique_ptr<RingTransport>> Join(std::shared_ptr<RingSegment> segment,
                                                             const GroupSpec& group, Peers peers,
                                                             const std::string& job_token);
  ~RingTransport() override;  // peers that wait for this rank fail

  int rank() const override { return group_.rank; }
  int size() const override { return group_.size(); }
  absl::Status Exchange(absl::Span<const Outgoing> sends, absl::Span<const Incoming> receives,
                        absl::Time deadline) override;
  SharedStage* shared_stage() override { return this; }
  void Abort(absl::Status why) noexcept override;
  CommStats stats() const override { return counters_.Read(); }

  int64_t slot_bytes() const override { return segment_->slot_bytes(); }
  absl::Status Begin(absl::Time deadline) override;
  std::byte* slot(int rank) override { return segment_->slot(rank, round_); }
  void Publish() override;
  absl::Status WaitForAll(absl::Time deadline) override;

 private:
  using Step = absl::FunctionRef<absl::StatusOr<Progress>()>;
  using Awaits = absl::FunctionRef<bool(int peer)>;

  RingTransport(std::shared_ptr<RingSegment> segment, const GroupSpec& group);

  absl::Status TakePlace(Peers peers, const std::string& job_token);
  absl::Status CheckProofs(const std::string& job_token) const;
  void WatchProcesses();

  absl::StatusOr<size_t> TryWrite(int peer, absl::Span<const std::byte> first,
                                  absl::Span<const std::byte> second) override;
  absl::StatusOr<size_t> TryRead(int peer, absl::Span<std::byte> first,
                                 absl::Span<std::byte> second) override;
  absl::Status WaitForRound(uint64_t round, absl::Time deadline);

  // Repeats `step` until it is done, the group ends, or it is stuck on a peer that is gone or late;
  // `awaits` says on which peers it is stuck. Until ends the group on an error, Wait does not.
  absl::Status Until(absl::Time deadline, Step step, Awaits awaits);
  absl::Status Wait(absl::Time deadline, Step step, Awaits awaits);
  // Until the doorbell moves on from `bell`; false if it did not for a while.
  bool Sleep(uint32_t bell, absl::Time deadline);
  // A peer that is awaited and has left or, if asked to look, died; -1 if there is none.
  enum class Look { kAtState, kAtProcess };
  int FindGone(Look look, Awaits awaits) const;
  // One of those that are awaited, as a rank of the cluster.
  int32_t AwaitedRank(Awaits awaits) const;

  void Wake(int peer);
  void WakeAll();
  absl::Status EndOf() const;  // why the group is over, or ok

  const std::shared_ptr<RingSegment> segment_;
  const GroupSpec group_;
  std::vector<UniqueFd> processes_;  // pidfd of each peer, where there is one
  MessagePump pump_;
  uint64_t round_ = 0;
  int spin_limit_;
  bool joined_ = false;
  StatCounters counters_;
  mutable std::mutex mutex_;
  absl::Status own_end_;  // guarded by mutex_; why the group is over, if it was ended here
};

}  // namespace polyreme::comm
