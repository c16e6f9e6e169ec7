// A rank connects to the ranks below it and then accepts those above. It cannot deadlock: rank 0
// only accepts, and once ranks 0 to k - 1 have taken rank k in, rank k accepts.

#include "parallel/comm/tcp_meeting.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "parallel/base/clock.h"
#include "parallel/base/limits.h"
#include "parallel/comm/group_errors.h"
#include "parallel/comm/tcp_handshake.h"
#include "parallel/comm/tcp_socket.h"

namespace polyreme::comm {
namespace {

std::string AddressKey(const std::string& key, int rank) {
  return fmt::format("{}/address/{}", key, rank);
}

template <class T>
absl::Span<std::byte> BytesOf(T& value) {
  return {reinterpret_cast<std::byte*>(&value), sizeof(value)};
}
template <class T>
absl::Span<const std::byte> BytesOf(const T& value) {
  return {reinterpret_cast<const std::byte*>(&value), sizeof(value)};
}

// Accepts the ranks above this one. Strangers come too: each has its own deadline, their number is
// bounded, and none of them holds up another.
class Door {
 public:
  Door(const UniqueFd& listener, const GroupSpec& group, const DoorKey& key,
       std::vector<UniqueFd>& sockets)
      : listener_(listener), group_(group), key_(key), sockets_(sockets) {}

  absl::Status AcceptAll() {
    while (num_accepted_ < group_.size() - 1 - group_.rank) {
      const absl::Time now = MonotonicNow();
      if (now >= group_.deadline) return Missing();
      std::erase_if(strangers_, [&](const Stranger& stranger) { return now >= stranger.deadline; });
      polls_.assign(1, {listener_.get(), POLLIN, 0});
      for (const Stranger& stranger : strangers_)
        polls_.push_back({stranger.socket.get(), POLLIN, 0});
      if (::poll(polls_.data(), polls_.size(), PollTimeout(group_.deadline)) <= 0) continue;
      // Backwards, because a stranger who has become a peer or was turned away leaves the list.
      for (size_t i = strangers_.size(); i-- > 0;) {
        if (polls_[i + 1].revents != 0 && !Listen(strangers_[i])) {
          strangers_.erase(strangers_.begin() + static_cast<ptrdiff_t>(i));
        }
      }
      if (polls_[0].revents != 0) Greet();
    }
    return absl::OkStatus();
  }

 private:
  struct Stranger {
    UniqueFd socket;
    absl::Time deadline;
    size_t received = 0;  // of hello and proof together
    Hello hello{};
    Welcome welcome{};
    launch::Proof proof{};
  };

  absl::Status Missing() const {
    const absl::Status missing = DidNotJoin(group_, [&](int peer) {
      return peer > group_.rank && !sockets_[static_cast<size_t>(peer)].valid();
    });
    if (num_refused_ == 0) return missing;
    return Annotate(missing, fmt::format("{} connections had another job token", num_refused_));
  }

  void Greet() {
    UniqueFd socket = Accept(listener_);
    if (!socket.valid()) return;
    if (strangers_.size() >= limits::kMaxUnprovenConnections) strangers_.erase(strangers_.begin());
    Stranger stranger;
    stranger.socket = std::move(socket);
    stranger.deadline = MonotonicNow() + limits::kConnectionProofPatience;
    strangers_.push_back(std::move(stranger));
  }

  // Takes what the stranger says. False when it is done with, for good or bad.
  bool Listen(Stranger& stranger) {
    const bool has_hello = stranger.received >= sizeof(Hello);
    const absl::Span<std::byte> rest =
        has_hello ? BytesOf(stranger.proof).subspan(stranger.received - sizeof(Hello))
                  : BytesOf(stranger.hello).subspan(stranger.received);
    const ssize_t count = ::recv(stranger.socket.get(), rest.data(), rest.size(), 0);
    if (count <= 0) return count < 0 && (errno == EAGAIN || errno == EINTR);
    stranger.received += static_cast<size_t>(count);
    if (static_cast<size_t>(count) < rest.size()) return true;
    return has_hello ? Admit(stranger) : AnswerHello(stranger);
  }

  bool AnswerHello(Stranger& stranger) {
    const Hello& hello = stranger.hello;
    if (hello.magic != Hello::kMagic) return false;
    const bool taken = hello.from >= 0 && hello.from < group_.size() &&
                       sockets_[static_cast<size_t>(hello.from)].valid();
    stranger.welcome =
        Answer(key_, hello, group_.rank, taken ? Welcome::kTaken : Welcome::kWelcome);
    // A fresh connection has room for so little; one that has not is none of ours.
    const bool sent =
        WriteAll(stranger.socket, BytesOf(std::as_const(stranger.welcome)), absl::InfinitePast())
            .ok();
    return sent && stranger.welcome.verdict == Welcome::kWelcome;
  }

  bool Admit(Stranger& stranger) {
    if (!IsProven(key_, stranger.hello, stranger.welcome, stranger.proof)) {
      ++num_refused_;
      return false;
    }
    if (stranger.hello.from >= group_.size()) return false;
    UniqueFd& socket = sockets_[static_cast<size_t>(stranger.hello.from)];
    if (socket.valid()) return false;
    socket = std::move(stranger.socket);
    ++num_accepted_;
    return false;
  }

  const UniqueFd& listener_;
  const GroupSpec& group_;
  const DoorKey& key_;
  std::vector<UniqueFd>& sockets_;
  std::vector<Stranger> strangers_;
  std::vector<pollfd> polls_;
  int num_accepted_ = 0;
  int num_refused_ = 0;
};

// For the other's welcome: it listens already, and comes to its door once those below it have let
// it in. What a link swallows never comes.
constexpr absl::Duration kWelcomePatience = absl::Seconds(15);

absl::StatusOr<UniqueFd> ConnectTo(const SocketAddress& address, const DoorKey& key,
                                   const GroupSpec& group, int peer) {
  const absl::Time deadline = std::min(group.deadline, MonotonicNow() + kWelcomePatience);
  ASSIGN_OR_RETURN(UniqueFd socket, Connect(address, deadline));
  Hello hello;
  hello.epoch = key.epoch;
  hello.group = key.group;
  hello.from = group.rank;
  hello.to = peer;
  hello.nonce = launch::MakeNonce();
  RETURN_IF_ERROR(WriteAll(socket, BytesOf(std::as_const(hello)), deadline));
  Welcome welcome;
  RETURN_IF_ERROR(ReadAll(socket, BytesOf(welcome), deadline));
  RETURN_IF_ERROR(CheckWelcome(key, hello, welcome));
  const launch::Proof proof = ProveTo(key, hello, welcome);
  RETURN_IF_ERROR(WriteAll(socket, BytesOf(proof), deadline));
  return socket;
}

// Strangers in numbers can push a connection out of the door before it has proven itself, so one
// that was cut is tried again. A peer that has died stays unavailable.
absl::StatusOr<UniqueFd> ConnectPatiently(const SocketAddress& address, const DoorKey& key,
                                          const GroupSpec& group, int peer) {
  constexpr int kAttempts = 3;
  absl::StatusOr<UniqueFd> socket = ConnectTo(address, key, group, peer);
  for (int i = 1; i < kAttempts && absl::IsUnavailable(socket.status()); ++i) {
    socket = ConnectTo(address, key, group, peer);
  }
  return socket;
}

}  // namespace

absl::StatusOr<std::vector<UniqueFd>> ConnectAll(launch::Rendezvous& meet, const std::string& key,
                                                 const GroupSpec& group,
                                                 const TcpOptions& options) {
  const DoorKey door_key = MakeDoorKey(options.epoch.value, key, options.job_token);
  std::vector<UniqueFd> sockets(static_cast<size_t>(group.size()));
  SocketAddress bound;
  ASSIGN_OR_RETURN(const UniqueFd listener, Listen(options.listen_address, bound));
  RETURN_IF_ERROR(meet.Put(AddressKey(key, group.rank), ToString(bound)));
  for (int peer = 0; peer < group.rank; ++peer) {
    const auto is_peer = [&](int other) { return other == peer; };
    const absl::StatusOr<std::string> text = meet.Wait(AddressKey(key, peer), group.deadline);
    if (absl::IsDeadlineExceeded(text.status())) return DidNotJoin(group, is_peer);
    RETURN_IF_ERROR(text.status());
    ASSIGN_OR_RETURN(const SocketAddress address, ParseSocketAddress(*text));
    absl::StatusOr<UniqueFd> socket = ConnectPatiently(address, door_key, group, peer);
    if (absl::IsDeadlineExceeded(socket.status()) && MonotonicNow() >= group.deadline) {
      return DidNotJoin(group, is_peer);
    }
    if (!socket.ok()) {
      return Annotate(socket.status(),
                      fmt::format("{}: {} at {}", group.name, NamePeers(group, is_peer), *text));
    }
    sockets[static_cast<size_t>(peer)] = *std::move(socket);
  }
  RETURN_IF_ERROR(Door(listener, group, door_key, sockets).AcceptAll());
  return sockets;
}

}  // namespace polyreme::comm
