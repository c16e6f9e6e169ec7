// config.json, then, behind a NUL, generation_config.json; what is accepted can be planned for.
#include "parallel/plan/model_spec.h"
#include "parallel/plan/shard_plan.h"
#include "tests/fuzz/fuzz.h"

namespace polyreme::plan {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view rest = fuzz::AsText(data, size);
  std::vector<std::string> notes;
  const absl::StatusOr<ModelSpec> spec = ParseModelSpec(fuzz::TakeText(rest), &notes);
  CHECK(notes.size() <= size);
  if (!spec.ok()) {
    fuzz::CheckRefusal(spec.status());
    return 0;
  }
  CHECK(spec->num_layers > 0 && spec->width > 0 && spec->head_dim > 0 && spec->vocabulary > 0);
  CHECK(spec->num_kv_heads > 0 && spec->num_query_heads % spec->num_kv_heads == 0);
  CHECK(NumParameters(*spec) > 0, "{} parameters", NumParameters(*spec));
  for (const int32_t token : spec->eos_tokens) CHECK(token >= 0 && token < spec->vocabulary);
  const absl::StatusOr<std::vector<int32_t>> eos =
      ParseGenerationEosTokens(fuzz::TakeText(rest), spec->vocabulary);
  if (!eos.ok()) fuzz::CheckRefusal(eos.status());
  const absl::StatusOr<Topology> topology = Topology::Make(2, 2);
  CHECK(topology.ok());
  const absl::StatusOr<ShardPlan> plan = ShardPlan::Make(*spec, *topology, {});
  if (!plan.ok()) {
    fuzz::CheckRefusal(plan.status());
    return 0;
  }
  for (int32_t rank = 0; rank < 4; ++rank) CHECK(plan->ShardOf(Rank{rank}).weight_bytes > 0);
  CHECK(!plan->Explain().empty());
  return 0;
}

}  // namespace polyreme::plan
