// How the ranks of one group compute together: five operations, none of them optional.
//
// Anything else (all-to-all, barrier, gather to one) is a free function over these five. Each
// member of a group must call the same operations in the same order with the same sizes. Errors go
// to the lane: the first one stays there, and on a lane that has failed each operation returns at
// once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/tensor/device.h"
#include "parallel/tensor/tensor.h"

namespace polyreme::comm {

// What a group has done since it was made.
struct CommStats {
  int64_t operations = 0;
  int64_t bytes_sent = 0;  // payload handed to peers
  int64_t bytes_received = 0;
  // From having to wait for a peer to the end of the operation, over all operations.
  absl::Duration waiting = absl::ZeroDuration();
};

// Called by one thread (the lane's), except Abort and stats, which any thread may call.
class Communicator {
 public:
  struct Outgoing {
    ConstTensorView from;
    int peer = 0;
  };
  struct Incoming {
    TensorView to;
    int peer = 0;
  };

  virtual ~Communicator() = default;

  virtual int rank() const = 0;  // within the group
  virtual int size() const = 0;

  // inout[i] <- the sum of inout[i] over all ranks. Floats only. On the CPU: float32, always added
  // in the order of TreeSum (comm/tree_sum.h), so that the bits are the same on each rank and on
  // each transport.
  virtual void AllReduceSum(Lane& lane, TensorView inout) = 0;
  // whole is [size * n] elements, part [n]: part <- elements [rank * n, (rank + 1) * n) of the sum,
  // same order.
  virtual void ReduceScatterSum(Lane& lane, ConstTensorView whole, TensorView part) = 0;
  // part is [n] elements, whole [size * n]: whole <- the parts one after another, by rank. Any
  // dtype.
  virtual void AllGather(Lane& lane, ConstTensorView part, TensorView whole) = 0;
  // inout of each rank <- inout of `root`. Any dtype.
  virtual void Broadcast(Lane& lane, TensorView inout, int root) = 0;
  // Posts all sends and receives together, so that rings and crossings cannot deadlock. Messages
  // between two ranks arrive in the order sent; sizes of a send and its receive must agree. A rank
  // may send to itself. Any dtype.
  virtual void Exchange(Lane& lane, absl::Span<const Outgoing> sends,
                        absl::Span<const Incoming> receives) = 0;

  // The memory that most operands will lie in: the lane's arena, whose contents are lost. Every
  // member calls it, with arenas of one size, before its first operation. It may go before the
  // group or after it, once nothing on the lane computes in it. A hint: NCCL's sums in registered
  // windows are faster.
  virtual absl::Status UseArena(TensorView arena) {
    (void)arena;
    return absl::OkStatus();
  }

  // The lane that fails when the group ends for a reason of its own (a peer is lost), even if no
  // operation is asked for any more, as when recorded work is replayed; null: none any more, which
  // its owner says before the lane goes. A CPU's operations see the end themselves. Any thread.
  virtual void FailWithGroup(Lane* lane) { (void)lane; }

  // Ends the group: operations in progress here and at the peers fail soon, later ones at once. The
  // first reason stays. Any thread.
  virtual void Abort(absl::Status why) noexcept = 0;
  virtual CommStats stats() const = 0;
};

// A group of one, on which a sum is the identity and a gather a copy. Host memory. `name` is for
// messages.
std::unique_ptr<Communicator> MakeOneRankCommunicator(std::string name);

class WaitBoard;

// One group as one of its members sees it.
struct GroupSpec {
  std::string name;           // "tensor group 0 of epoch 3", for messages
  int rank = 0;               // within the group
  std::vector<Rank> members;  // ranks of the world, by rank within the group; for messages
  absl::Time deadline = absl::InfinitePast();      // of joining
  absl::Duration patience = absl::ZeroDuration();  // how long that is from the start, for messages
  WaitBoard* board = nullptr;  // of the thread that uses the group; outlives it; null: none

  int size() const { return static_cast<int>(members.size()); }
};

// Makes communicators of a kind that this library does not link (NCCL, from the plugin).
class CommunicatorFactory {
 public:
  virtual ~CommunicatorFactory() = default;
  // Called by rank 0 of a group; the id travels to the other members as a value of the meeting.
  virtual absl::StatusOr<std::string> MakeId() = 0;
  // Called by each member of a group with the id that its rank 0 made; a group of one has none.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Make(const GroupSpec& group,
                                                             const std::string& id) = 0;
};

}  // namespace polyreme::comm
