// Transport between ranks that are processes of one host.
#pragma once

#include <memory>
#include <string>

#include "parallel/base/ids.h"
#include "parallel/comm/transport.h"
#include "parallel/launch/rendezvous.h"

namespace polyreme::comm {

// Rank 0 of the group makes anonymous memory (memfd), tells the others at the meeting which
// descriptor of which process it is, and closes the descriptor once all have mapped it. It never
// has a name in a file system, so that no way of dying leaves anything behind.
//
// key  names the group and epoch at the meeting; the same on all its ranks.
// Errors: as RingTransport::Join; FailedPrecondition for memory of another epoch or that cannot be
// reached (another host, pid namespace or user); ResourceExhausted.
absl::StatusOr<std::unique_ptr<Transport>> JoinSharedMemory(launch::Rendezvous& meet,
                                                            const std::string& key, Epoch epoch,
                                                            const GroupSpec& group,
                                                            const std::string& job_token);

}  // namespace polyreme::comm
