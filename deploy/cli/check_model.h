// What can be refused before any process is started: one sentence, not one from each rank.
#pragma once

#include "deploy/cli/serve_config.h"

namespace polyreme::cli {

// Reads MODEL's config.json and deals it over the layout, as every rank will. Errors: those of
// plan::ReadModelSpec, plan::ShardPlan::Make, ResolveDtype and ResolveMaxModelLen.
absl::Status CheckModel(const ServeConfig& config);

}  // namespace polyreme::cli
