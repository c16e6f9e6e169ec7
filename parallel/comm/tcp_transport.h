// Transport between ranks that are processes of any hosts: one TCP connection for each pair.
#pragma once

#include <memory>
#include <string>

#include "parallel/base/ids.h"
#include "parallel/comm/transport.h"
#include "parallel/launch/rendezvous.h"

namespace polyreme::comm {

struct TcpOptions {
  Epoch epoch;
  std::string listen_address;  // numeric IPv4 or IPv6 address of this rank that its peers can reach
  std::string job_token;
};

// Each rank listens, puts its address at the meeting, connects to the ranks below its own and
// accepts those above. Both ends of a connection prove the job token (tcp_handshake.h); strangers
// are turned away and do not disturb.
//
// key  names the group and epoch at the meeting; the same on all its ranks.
// Errors: DeadlineExceeded naming who did not come; Unauthenticated when the peer that answers has
// another job token; FailedPrecondition for another epoch, an address that cannot be bound, or two
// processes that claim one rank.
absl::StatusOr<std::unique_ptr<Transport>> JoinTcp(launch::Rendezvous& meet, const std::string& key,
                                                   const GroupSpec& group,
                                                   const TcpOptions& options);

}  // namespace polyreme::comm
