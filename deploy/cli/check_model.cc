#include "deploy/cli/check_model.h"

#include "parallel/plan/shard_plan.h"

namespace polyreme::cli {

absl::Status CheckModel(const ServeConfig& config) {
  ASSIGN_OR_RETURN(const plan::ModelSpec spec, plan::ReadModelSpec(config.model));
  ASSIGN_OR_RETURN(
      const plan::Topology topology,
      plan::Topology::Make(config.pipeline_parallel_size, config.tensor_parallel_size));
  plan::PlanOptions options;
  options.layers_per_stage = config.pipeline_layers;
  RETURN_IF_ERROR(plan::ShardPlan::Make(spec, topology, options).status());
  RETURN_IF_ERROR(ResolveDtype(config, spec).status());
  return ResolveMaxModelLen(config, spec).status();
}

}  // namespace polyreme::cli
