// How bytes get from one rank of a group to another. Knows nothing of tensors or sums.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "parallel/base/status.h"
#include "parallel/comm/communicator.h"

namespace polyreme::comm {

class SharedStage;

// Reliable messages between the ranks of one group, in order for each pair. Used by one thread at a
// time, except Abort and stats. After the first error a transport is of no more use: later calls
// return that error at once.
class Transport {
 public:
  struct Outgoing {
    absl::Span<const std::byte> bytes;
    int peer = 0;
  };
  struct Incoming {
    absl::Span<std::byte> bytes;
    int peer = 0;
  };

  virtual ~Transport() = default;

  virtual int rank() const = 0;  // within the group
  virtual int size() const = 0;

  // Posts all sends and receives together and returns when each receive is filled and each send's
  // bytes may be reused (they may still be on their way). A send can wait until its peer receives.
  // A rank cannot send to itself. Errors: DeadlineExceeded naming the peers waited for; Unavailable
  // when a peer died, left or aborted; DataLoss when a message has not the size that its receiver
  // expects.
  virtual absl::Status Exchange(absl::Span<const Outgoing> sends,
                                absl::Span<const Incoming> receives, absl::Time deadline) = 0;

  absl::Status Send(int peer, absl::Span<const std::byte> bytes, absl::Time deadline) {
    const Outgoing send{bytes, peer};
    return Exchange({&send, 1}, {}, deadline);
  }
  absl::Status Receive(int peer, absl::Span<std::byte> bytes, absl::Time deadline) {
    const Incoming receive{bytes, peer};
    return Exchange({}, {&receive, 1}, deadline);
  }

  // Memory that all ranks of the group see, if this transport has such; a quicker way to add. Owned
  // by the transport.
  virtual SharedStage* shared_stage() { return nullptr; }

  // Ends the group: waits here and at the peers return soon. The first reason stays. Any thread.
  virtual void Abort(absl::Status why) noexcept = 0;
  virtual CommStats stats() const = 0;  // operations: calls of Exchange
};

// A slot of memory per rank that all ranks of a group see. Each round: Begin, write own slot,
// Publish, WaitForAll, read the slots of all, which stay as they are until this rank publishes the
// next round.
class SharedStage {
 public:
  virtual ~SharedStage() = default;
  virtual int64_t slot_bytes() const = 0;
  // Opens the next round: waits until no peer reads what this round will overwrite.
  virtual absl::Status Begin(absl::Time deadline) = 0;
  // The slot of `rank` in this round, 64-byte aligned. Own: to write before Publish; others: to
  // read after WaitForAll.
  virtual std::byte* slot(int rank) = 0;
  virtual void Publish() = 0;
  virtual absl::Status WaitForAll(absl::Time deadline) = 0;
};

}  // namespace polyreme::comm
