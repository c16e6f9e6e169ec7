// How the server is: /health, /ping, /version, /load, /metrics, and a page for people at /.
#pragma once

#include <vector>

#include "coordinator/api/backend.h"
#include "coordinator/api/router.h"

namespace polyreme::api {

// `context` outlives the routes. /health and /ping need no key: 200 while steps make progress, else
// 503 with the reason.
std::vector<Route> StatusRoutes(const ApiContext& context);

}  // namespace polyreme::api
