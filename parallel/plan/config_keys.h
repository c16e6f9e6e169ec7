// What each key of a config.json means to us: read elsewhere, without effect on the result, or
// changing it in a way that is not implemented.
#pragma once

#include <string>
#include <vector>

#include "parallel/base/status.h"
#include "parallel/plan/config_reader.h"

namespace polyreme::plan {

// InvalidArgument names the first key that would change the result and is not implemented. Keys in
// no table: a line each in `notes` (if not null), unless their value is null, false or empty.
absl::Status CheckConfigKeys(const ConfigReader& config, std::vector<std::string>* notes);

}  // namespace polyreme::plan
