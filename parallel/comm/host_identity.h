// Which machine this is, as far as sharing memory goes.
#pragma once

#include <string>

namespace polyreme::comm {

// "name (boot ..., pid namespace ...)": equal in two processes exactly if each can open the other's
// memory.
std::string HostIdentity();

}  // namespace polyreme::comm
