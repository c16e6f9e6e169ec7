// The sampling a checkpoint recommends (generation_config.json): used for what a request leaves
// open, as vLLM does.
#pragma once

#include <string>

#include "coordinator/engine/request.h"
#include "parallel/base/status.h"

namespace polyreme::cli {

// temperature, top_k, top_p, min_p and repetition_penalty of DIRECTORY/generation_config.json over
// the engine's defaults; the defaults alone if there is no such file. InvalidArgument: a value of
// another type.
absl::StatusOr<engine::GenerateRequest> ReadGenerationDefaults(const std::string& directory);

}  // namespace polyreme::cli
