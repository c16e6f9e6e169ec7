// A question asked in a process of its own.
#pragma once

#include <functional>

#include "absl/time/time.h"
#include "parallel/base/status.h"

namespace polyreme::cli {

// What `body` returns, run in a forked child that ends right after it: threads, handlers and
// memory that a driver makes for itself go with it. The caller has one thread, or `body` uses
// nothing that another may hold. DeadlineExceeded after `patience`, the child killed; Internal if
// it ended without an answer.
absl::Status RunApart(const std::function<absl::Status()>& body, absl::Duration patience);

}  // namespace polyreme::cli
