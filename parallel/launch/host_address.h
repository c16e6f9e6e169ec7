// Which address of this host another host of the job can reach.
#pragma once

#include <string>

#include "parallel/base/status.h"

namespace polyreme::launch {

// The numeric address that this host would send from to reach `host` (a name or an address);
// nothing is sent. Peers that reach `host` reach us there too, unless they are behind another
// network. NotFound when the name does not resolve, Unavailable without a route.
absl::StatusOr<std::string> OwnAddressTowards(const std::string& host);

// 127.x.y.z or ::1: no other host can reach it.
bool IsLoopbackAddress(const std::string& numeric);

}  // namespace polyreme::launch
