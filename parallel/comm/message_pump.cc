#include "parallel/comm/message_pump.h"

#include <algorithm>
#include <cstring>

#include "parallel/base/limits.h"

namespace polyreme::comm {

MessagePump::MessagePump(const GroupSpec& group, ByteStreams& streams)
    : group_(group), streams_(streams) {
  const size_t size = static_cast<size_t>(group.size());
  blocked_.resize(size);
  sending_.reserve(2 * size);
  receiving_.reserve(2 * size);
}

void MessagePump::Start(absl::Span<const Transport::Outgoing> sends,
                        absl::Span<const Transport::Incoming> receives) {
  const auto is_peer = [&](int peer) {
    return peer >= 0 && peer < group_.size() && peer != group_.rank;
  };
  sends_ = sends;
  receives_ = receives;
  sending_.assign(sends.size(), Transfer{});
  receiving_.assign(receives.size(), Transfer{});
  for (size_t i = 0; i < sends.size(); ++i) {
    const int64_t length = std::ssize(sends[i].bytes);
    CHECK(is_peer(sends[i].peer) && length <= limits::kMaxMessageBytes);
    std::memcpy(sending_[i].frame.data(), &length, sizeof(length));
  }
  for (const Transport::Incoming& receive : receives) CHECK(is_peer(receive.peer));
}

absl::StatusOr<Progress> MessagePump::Step() {
  bool moved = false;
  bool all_done = true;
  std::fill(blocked_.begin(), blocked_.end(), 0);
  for (size_t i = 0; i < sends_.size(); ++i) {
    char& blocked = blocked_[static_cast<size_t>(sends_[i].peer)];
    if (!sending_[i].done && !blocked) {
      ASSIGN_OR_RETURN(const bool some, StepSend(sends_[i], sending_[i]));
      moved |= some;
    }
    if (sending_[i].done) continue;
    blocked = 1;
    all_done = false;
  }
  std::fill(blocked_.begin(), blocked_.end(), 0);
  for (size_t i = 0; i < receives_.size(); ++i) {
    char& blocked = blocked_[static_cast<size_t>(receives_[i].peer)];
    if (!receiving_[i].done && !blocked) {
      ASSIGN_OR_RETURN(const bool some, StepReceive(receives_[i], receiving_[i]));
      moved |= some;
    }
    if (receiving_[i].done) continue;
    blocked = 1;
    all_done = false;
  }
  if (all_done) return Progress::kDone;
  return moved ? Progress::kMoved : Progress::kStuck;
}

absl::StatusOr<bool> MessagePump::StepSend(const Transport::Outgoing& send, Transfer& transfer) {
  const size_t framed = std::min(transfer.moved, sizeof(Frame));
  const size_t sent = transfer.moved - framed;
  ASSIGN_OR_RETURN(const size_t count,
                   streams_.TryWrite(send.peer, absl::MakeConstSpan(transfer.frame).subspan(framed),
                                     send.bytes.subspan(sent)));
  transfer.moved += count;
  transfer.done = transfer.moved == sizeof(Frame) + send.bytes.size();
  return count > 0;
}

absl::StatusOr<bool> MessagePump::StepReceive(const Transport::Incoming& receive,
                                              Transfer& transfer) {
  const size_t framed = std::min(transfer.moved, sizeof(Frame));
  const size_t received = transfer.moved - framed;
  ASSIGN_OR_RETURN(const size_t count,
                   streams_.TryRead(receive.peer, absl::MakeSpan(transfer.frame).subspan(framed),
                                    receive.bytes.subspan(received)));
  transfer.moved += count;
  if (framed < sizeof(Frame) && transfer.moved >= sizeof(Frame)) {
    int64_t length = 0;
    std::memcpy(&length, transfer.frame.data(), sizeof(length));
    if (length != std::ssize(receive.bytes)) {
      return DataLoss("{}: expected a message of {} bytes from rank {}, got one of {}", group_.name,
                      receive.bytes.size(), group_.members[static_cast<size_t>(receive.peer)].value,
                      length);
    }
  }
  transfer.done = transfer.moved == sizeof(Frame) + receive.bytes.size();
  return count > 0;
}

bool MessagePump::IsSendingTo(int peer) const {
  for (size_t i = 0; i < sends_.size(); ++i) {
    if (sends_[i].peer == peer && !sending_[i].done) return true;
  }
  return false;
}

bool MessagePump::IsReceivingFrom(int peer) const {
  for (size_t i = 0; i < receives_.size(); ++i) {
    if (receives_[i].peer == peer && !receiving_[i].done) return true;
  }
  return false;
}

}  // namespace polyreme::comm
