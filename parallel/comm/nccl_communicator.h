// Communicator over NCCL, on the memory of one GPU. All operations go to the lane's native_stream()
// and may be captured into a CUDA graph there (capture mode thread-local or relaxed: a non-blocking
// communicator launches from a thread of its own, and the call returns when it has).
//
// stats(): a captured operation counts once, not per replay; waiting is zero, because it is the
// device that waits.
#pragma once

#include <memory>

#include "absl/types/span.h"
#include "parallel/base/status.h"
#include "parallel/comm/communicator.h"

namespace polyreme::comm {

// One all-reduce, on the slowest rank; the same on each rank.
struct AllReduceTiming {
  int64_t bytes = 0;
  double plain_seconds = 0;
  double window_seconds = 0;  // 0: no symmetric windows
};

class NcclCommunicator : public Communicator {
 public:
  // What UseArena measured, ascending; empty before.
  virtual absl::Span<const AllReduceTiming> timings() const = 0;
};

class NcclFactory : public CommunicatorFactory {
 public:
  // Zeroed device memory, 256-byte aligned; once a group of more than one has been made, such that
  // windows can be made of it (ncclMemAlloc). ResourceExhausted with what was asked for and what
  // is free. Must be gone before the process's CUDA context.
  virtual absl::StatusOr<Buffer> AllocateArena(int64_t bytes) = 0;
};

// Opens NCCL when a group of more than one is made, not before; its communicators are
// NcclCommunicators then. device_index: CUDA ordinal.
absl::StatusOr<std::unique_ptr<NcclFactory>> MakeNcclFactory(int device_index);

}  // namespace polyreme::comm
