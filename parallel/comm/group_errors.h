// The few messages that all transports share, so that a missing rank reads the same on each.
#pragma once

#include <string>

#include "absl/functional/function_ref.h"
#include "parallel/base/status.h"
#include "parallel/comm/communicator.h"

namespace polyreme::comm {

// "rank 2" or "ranks 2, 5": those peers of the group for which `chosen` holds, as ranks of the
// world.
std::string NamePeers(const GroupSpec& group, absl::FunctionRef<bool(int peer)> chosen);
// "rank 2 did not join tensor group 0 of epoch 3 within 1m".
absl::Status DidNotJoin(const GroupSpec& group, absl::FunctionRef<bool(int peer)> missing);

}  // namespace polyreme::comm
