// One proven connection from this rank to each other rank of a group.
#pragma once

#include <string>
#include <vector>

#include "parallel/comm/tcp_transport.h"
#include "parallel/comm/unique_fd.h"

namespace polyreme::comm {

// Sockets by rank of the group, own one invalid; non-blocking. Errors as JoinTcp.
absl::StatusOr<std::vector<UniqueFd>> ConnectAll(launch::Rendezvous& meet, const std::string& key,
                                                 const GroupSpec& group, const TcpOptions& options);

}  // namespace polyreme::comm
