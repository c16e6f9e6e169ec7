// Which program this is.
#pragma once

#include <string>

namespace polyreme::cli {

inline constexpr char kVersion[] = POLYREME_VERSION;

// The linker's build id of this executable (GNU note, hexadecimal): equal on two hosts exactly if
// they run the same binary.
std::string BuildId();

}  // namespace polyreme::cli
