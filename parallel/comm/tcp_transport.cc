#include "parallel/comm/tcp_transport.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "parallel/base/clock.h"
#include "parallel/comm/group_errors.h"
#include "parallel/comm/message_pump.h"
#include "parallel/comm/stat_counters.h"
#include "parallel/comm/tcp_meeting.h"
#include "parallel/comm/tcp_socket.h"
#include "parallel/comm/wait_board.h"

namespace polyreme::comm {
namespace {

// A look at a socket costs about a microsecond; a sleep, ten.
constexpr int kMaxSpins = 16;

class TcpTransport final : public Transport, private ByteStreams {
 public:
  TcpTransport(const GroupSpec& group, std::vector<UniqueFd> sockets, UniqueFd wake)
      : group_(group), sockets_(std::move(sockets)), wake_(std::move(wake)), pump_(group_, *this) {
    polls_.reserve(sockets_.size() + 1);
  }

  int rank() const override { return group_.rank; }
  int size() const override { return group_.size(); }
  absl::Status Exchange(absl::Span<const Outgoing> sends, absl::Span<const Incoming> receives,
                        absl::Time deadline) override;
  void Abort(absl::Status why) noexcept override;
  CommStats stats() const override { return counters_.Read(); }

 private:
  absl::StatusOr<size_t> TryWrite(int peer, absl::Span<const std::byte> first,
                                  absl::Span<const std::byte> second) override;
  absl::StatusOr<size_t> TryRead(int peer, absl::Span<std::byte> first,
                                 absl::Span<std::byte> second) override;
  absl::Status Run(absl::Time deadline);
  absl::Status Sleep(absl::Time deadline);
  // A rank that this one sends to or hears from; one there is while the pump is not done.
  int32_t AwaitedRank() const;
  absl::Status EndOf() const;  // why the group is over, or ok
  absl::Status Lost(int peer, const char* how) const {
    return Unavailable("{}: rank {} {}", group_.name,
                       group_.members[static_cast<size_t>(peer)].value, how);
  }

  const GroupSpec group_;
  const std::vector<UniqueFd> sockets_;  // by peer
  const UniqueFd wake_;                  // eventfd, readable once the group has ended
  MessagePump pump_;
  std::vector<pollfd> polls_;
  int spin_limit_ = kMaxSpins;
  StatCounters counters_;
  std::atomic<bool> ended_{false};
  mutable std::mutex mutex_;
  absl::Status end_;  // guarded by mutex_
};

absl::Status TcpTransport::Exchange(absl::Span<const Outgoing> sends,
                                    absl::Span<const Incoming> receives, absl::Time deadline) {
  pump_.Start(sends, receives);
  if (absl::Status status = Run(deadline); !status.ok()) {
    Abort(status);
    return status;
  }
  counters_.CountOperation();
  for (const Outgoing& send : sends) counters_.CountSent(send.bytes.size());
  for (const Incoming& receive : receives) counters_.CountReceived(receive.bytes.size());
  return absl::OkStatus();
}

absl::Status TcpTransport::Run(absl::Time deadline) {
  absl::Time start = absl::InfiniteFuture();
  bool slept = false;
  for (int spins = 0; true;) {
    RETURN_IF_ERROR(EndOf());
    const absl::StatusOr<Progress> progress = pump_.Step();
    // A connection that this rank's own Abort has shut looks lost; say why.
    if (!progress.ok()) {
      const absl::Status end = EndOf();
      return end.ok() ? progress.status() : end;
    }
    if (*progress != Progress::kStuck && group_.board != nullptr) group_.board->Moved();
    if (*progress == Progress::kDone) break;
    if (start == absl::InfiniteFuture()) start = MonotonicNow();
    if (*progress == Progress::kMoved) {
      spins = 0;
    } else if (++spins > spin_limit_) {
      slept = true;
      if (group_.board != nullptr) group_.board->WaitFor(AwaitedRank());
      RETURN_IF_ERROR(Sleep(deadline));
    }
  }
  if (start == absl::InfiniteFuture()) return absl::OkStatus();
  // Spinning has paid if it found what it spun for.
  spin_limit_ = slept ? spin_limit_ / 2 : std::min(2 * spin_limit_ + 1, kMaxSpins);
  counters_.CountWaiting(MonotonicNow() - start);
  return absl::OkStatus();
}

int32_t TcpTransport::AwaitedRank() const {
  int peer = 0;
  while (peer + 1 < size() && !pump_.IsPending(peer)) ++peer;
  return group_.members[static_cast<size_t>(peer)].value;
}

absl::Status TcpTransport::Sleep(absl::Time deadline) {
  polls_.assign(1, {wake_.get(), POLLIN, 0});
  for (int peer = 0; peer < size(); ++peer) {
    short events = 0;
    if (pump_.IsSendingTo(peer)) events |= POLLOUT;
    if (pump_.IsReceivingFrom(peer)) events |= POLLIN;
    if (events != 0) polls_.push_back({sockets_[static_cast<size_t>(peer)].get(), events, 0});
  }
  if (::poll(polls_.data(), polls_.size(), PollTimeout(deadline)) > 0) return absl::OkStatus();
  if (MonotonicNow() < deadline) return absl::OkStatus();
  return DeadlineExceeded("{}: waited too long for {}", group_.name,
                          NamePeers(group_, [&](int peer) { return pump_.IsPending(peer); }));
}

absl::StatusOr<size_t> TcpTransport::TryWrite(int peer, absl::Span<const std::byte> first,
                                              absl::Span<const std::byte> second) {
  // sendmsg does not write through these; the interface only has no const.
  iovec parts[] = {{const_cast<std::byte*>(first.data()), first.size()},
                   {const_cast<std::byte*>(second.data()), second.size()}};
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  const ssize_t count =
      ::sendmsg(sockets_[static_cast<size_t>(peer)].get(), &message, MSG_NOSIGNAL);
  if (count >= 0) return static_cast<size_t>(count);
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return size_t{0};
  return Lost(peer, std::strerror(errno));
}

absl::StatusOr<size_t> TcpTransport::TryRead(int peer, absl::Span<std::byte> first,
                                             absl::Span<std::byte> second) {
  iovec parts[] = {{first.data(), first.size()}, {second.data(), second.size()}};
  const ssize_t count = ::readv(sockets_[static_cast<size_t>(peer)].get(), parts, 2);
  if (count > 0) return static_cast<size_t>(count);
  if (count == 0) return Lost(peer, "closed its connection");
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return size_t{0};
  return Lost(peer, std::strerror(errno));
}

// Peers see their connections end.
void TcpTransport::Abort(absl::Status why) noexcept {
  CHECK(!why.ok());
  {
    const std::lock_guard lock(mutex_);
    if (!end_.ok()) return;
    end_ = std::move(why);
  }
  ended_.store(true);
  const uint64_t one = 1;
  CHECK(::write(wake_.get(), &one, sizeof(one)) == sizeof(one));
  for (const UniqueFd& socket : sockets_) {
    if (socket.valid()) ::shutdown(socket.get(), SHUT_RDWR);
  }
}

absl::Status TcpTransport::EndOf() const {
  if (!ended_.load()) return absl::OkStatus();
  const std::lock_guard lock(mutex_);
  return end_;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Transport>> JoinTcp(launch::Rendezvous& meet, const std::string& key,
                                                   const GroupSpec& group,
                                                   const TcpOptions& options) {
  ASSIGN_OR_RETURN(std::vector<UniqueFd> sockets, ConnectAll(meet, key, group, options));
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.valid()) return ResourceExhausted("no eventfd: {}", std::strerror(errno));
  return std::make_unique<TcpTransport>(group, std::move(sockets), std::move(wake));
}

}  // namespace polyreme::comm
