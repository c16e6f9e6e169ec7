// What launchers hand us: a node list, tasks per node, and an environment, each up to a NUL; the
// environment as lines NAME=VALUE.
#include <map>

#include "parallel/base/limits.h"
#include "parallel/launch/launch_env.h"
#include "parallel/launch/node_list.h"
#include "tests/fuzz/fuzz.h"

namespace polyreme::launch {

namespace {

std::map<std::string, std::string> VariablesOf(std::string_view text) {
  std::map<std::string, std::string> variables;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    if (const size_t equals = line.find('='); equals != std::string_view::npos) {
      variables.emplace(line.substr(0, equals), line.substr(equals + 1));
    }
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return variables;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view rest = fuzz::AsText(data, size);
  const absl::StatusOr<std::vector<std::string>> nodes = ParseNodeList(fuzz::TakeText(rest));
  if (nodes.ok()) {
    CHECK(nodes->size() <= size_t{limits::kMaxRanks});
    for (const std::string& node : *nodes) CHECK(!node.empty() && node.size() <= size);
  } else {
    fuzz::CheckRefusal(nodes.status());
  }
  const absl::StatusOr<std::vector<int32_t>> tasks = ParseTasksPerNode(fuzz::TakeText(rest));
  if (tasks.ok()) {
    CHECK(tasks->size() <= size_t{limits::kMaxRanks});
    for (const int32_t count : *tasks) CHECK(count >= 0);
  } else {
    fuzz::CheckRefusal(tasks.status());
  }
  const std::map<std::string, std::string> variables = VariablesOf(rest);
  const absl::StatusOr<LaunchEnv> env =
      ReadLaunchEnv({}, [&](const std::string& name) -> std::optional<std::string> {
        const auto found = variables.find(name);
        if (found == variables.end()) return std::nullopt;
        return found->second;
      });
  if (!env.ok()) {
    fuzz::CheckRefusal(env.status());
    return 0;
  }
  CHECK(env->world_size >= 1 && env->world_size <= limits::kMaxRanks);
  CHECK(env->rank >= 0 && env->rank < env->world_size);
  CHECK(env->local_rank >= 0 && env->local_rank < env->local_size);
  const int32_t port = PortOfJob(env->job_id, 20000, 10000);
  CHECK(port >= 20000 && port < 30000);
  return 0;
}

}  // namespace polyreme::launch
