// Another program's output, as a value.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

// Runs `program` (a path, or a name in PATH) and returns what it prints to standard output; its
// standard error is ours if `shows_errors`, else dropped. Unavailable: it cannot be started or ends
// with another exit code than 0. DeadlineExceeded: it was killed.
absl::StatusOr<std::string> OutputOf(const std::string& program,
                                     const std::vector<std::string>& arguments,
                                     absl::Duration patience, bool shows_errors);

}  // namespace polyreme::bench
