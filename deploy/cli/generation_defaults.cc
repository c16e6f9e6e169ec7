#include "deploy/cli/generation_defaults.h"

#include <filesystem>
#include <fstream>
#include <sstream>

#include "parallel/base/json.h"
#include "parallel/base/limits.h"

namespace polyreme::cli {
namespace {

absl::Status ReadNumber(const Json& config, const char* key, double& value) {
  const Json* found = config.Find(key);
  if (found == nullptr || found->is_null()) return absl::OkStatus();
  if (!found->is_number()) {
    return InvalidArgument("{}: expected a number, got {}", key, found->type_name());
  }
  value = found->as_double();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<engine::GenerateRequest> ReadGenerationDefaults(const std::string& directory) {
  engine::GenerateRequest defaults;
  const std::string path = directory + "/generation_config.json";
  if (!std::filesystem::exists(path)) return defaults;
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  Json::ParseOptions options;
  options.bytes_max = limits::kMaxConfigFileBytes;
  absl::StatusOr<Json> config = Json::Parse(text.str(), options);
  if (!config.ok()) return Annotate(config.status(), path);
  double top_k = defaults.top_k;
  // do_sample false means greedy in Transformers; servers leave that to the request's temperature.
  RETURN_IF_ERROR(Annotate(ReadNumber(*config, "temperature", defaults.temperature), path));
  RETURN_IF_ERROR(Annotate(ReadNumber(*config, "top_p", defaults.top_p), path));
  RETURN_IF_ERROR(Annotate(ReadNumber(*config, "min_p", defaults.min_p), path));
  RETURN_IF_ERROR(Annotate(ReadNumber(*config, "top_k", top_k), path));
  RETURN_IF_ERROR(
      Annotate(ReadNumber(*config, "repetition_penalty", defaults.repetition_penalty), path));
  if (!(top_k >= -1 && top_k <= limits::kMaxVocabulary)) {
    return InvalidArgument("{}: top_k: expected -1 to {}, got {}", path, limits::kMaxVocabulary,
                           top_k);
  }
  defaults.top_k = static_cast<int32_t>(top_k);
  return defaults;
}

}  // namespace polyreme::cli
