// Whole small files as text: configurations, templates, indexes.
#pragma once

#include <cstdint>
#include <string>

#include "parallel/base/status.h"

namespace polyreme {

// The bytes of the regular file at `path`. NotFound if there is none, ResourceExhausted if it is
// longer than `bytes_max`, FailedPrecondition if it cannot be read, DataLoss if it ended early; each
// names the path. Blocking; any thread.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t bytes_max);

// Whether something that can be opened for reading is at `path`.
bool FileExists(const std::string& path);

}  // namespace polyreme
