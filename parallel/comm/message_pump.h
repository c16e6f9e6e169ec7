// Turns byte streams between ranks into messages: frames them, keeps the order per peer, and moves
// whatever can move.
#pragma once

#include <array>
#include <vector>

#include "parallel/comm/transport.h"

namespace polyreme::comm {

// Streams to and from each peer of a group, that never wait.
class ByteStreams {
 public:
  virtual ~ByteStreams() = default;
  // Moves some bytes of `first`, then of `second`; how many in all, 0 if there is no room or
  // nothing came.
  virtual absl::StatusOr<size_t> TryWrite(int peer, absl::Span<const std::byte> first,
                                          absl::Span<const std::byte> second) = 0;
  virtual absl::StatusOr<size_t> TryRead(int peer, absl::Span<std::byte> first,
                                         absl::Span<std::byte> second) = 0;
};

enum class Progress { kDone, kMoved, kStuck };

// The sends and receives of one Exchange. A message goes over as its length (8 bytes) and its
// bytes.
class MessagePump {
 public:
  MessagePump(const GroupSpec& group, ByteStreams& streams);

  // Borrows both until the pump is done or given up.
  void Start(absl::Span<const Transport::Outgoing> sends,
             absl::Span<const Transport::Incoming> receives);
  // Moves what can move now. DataLoss if a message has not the size that its receiver expects;
  // errors of the streams.
  absl::StatusOr<Progress> Step();

  bool IsSendingTo(int peer) const;
  bool IsReceivingFrom(int peer) const;
  bool IsPending(int peer) const { return IsSendingTo(peer) || IsReceivingFrom(peer); }

 private:
  using Frame = std::array<std::byte, 8>;
  struct Transfer {
    Frame frame{};
    size_t moved = 0;  // of frame and payload together
    bool done = false;
  };

  absl::StatusOr<bool> StepSend(const Transport::Outgoing& send, Transfer& transfer);
  absl::StatusOr<bool> StepReceive(const Transport::Incoming& receive, Transfer& transfer);

  const GroupSpec& group_;
  ByteStreams& streams_;
  absl::Span<const Transport::Outgoing> sends_;
  absl::Span<const Transport::Incoming> receives_;
  std::vector<Transfer> sending_;  // these three are kept for their capacity
  std::vector<Transfer> receiving_;
  std::vector<char> blocked_;  // by peer: an earlier message of this call is not through
};

}  // namespace polyreme::comm
