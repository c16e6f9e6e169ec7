// Writes each operation of a communicator into the flight recorder: begun, and how it ended.
#pragma once

#include <memory>

#include "parallel/comm/communicator.h"
#include "parallel/trace/flight_ring.h"

namespace polyreme::comm {

// `ring` outlives it. An operation that a device computes later (NCCL's) ends here when it is
// enqueued.
enum class OperationEnd { kComputed, kEnqueued };
std::unique_ptr<Communicator> MakeRecordedCommunicator(std::unique_ptr<Communicator> communicator,
                                                       trace::FlightGroup group, OperationEnd end,
                                                       trace::FlightRing& ring);

}  // namespace polyreme::comm
