// OpenAI's and vLLM's paths: /v1/completions, /v1/chat/completions, /v1/models, /tokenize,
// /detokenize.
#pragma once

#include <vector>

#include "coordinator/api/backend.h"
#include "coordinator/api/router.h"

namespace polyreme::api {

// `context` outlives the routes.
std::vector<Route> OpenAiRoutes(const ApiContext& context);

}  // namespace polyreme::api
