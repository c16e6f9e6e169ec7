#include "worker/backend/backend.h"

#include <fmt/format.h>

#include "worker/backend/cpu/cpu_backend.h"
#include "worker/backend/cuda/plugin.h"

namespace polyreme::backend {
namespace {

struct BackendRow {
  std::string_view name;
  absl::StatusOr<std::unique_ptr<Backend>> (*make)(const BackendOptions& options);
};

// The table of backends.
constexpr BackendRow kBackends[] = {
    {"cpu",
     [](const BackendOptions& options) {
       return MakeCpuBackend({.num_threads = options.num_threads, .isa = std::nullopt});
     }},
    {"cuda",
     [](const BackendOptions& options) -> absl::StatusOr<std::unique_ptr<Backend>> {
       ASSIGN_OR_RETURN(const cuda::CudaPlugin* plugin, cuda::OpenCudaPlugin());
       return plugin->make_backend(options);
     }},
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(std::string_view name,
                                                     const BackendOptions& options) {
  for (const BackendRow& row : kBackends) {
    if (row.name == name) return row.make(options);
  }
  return NotFound("expected a backend of {}, got '{:.40}'", fmt::join(BackendNames(), ", "), name);
}

std::vector<std::string_view> BackendNames() {
  std::vector<std::string_view> names;
  for (const BackendRow& row : kBackends) names.push_back(row.name);
  return names;
}

}  // namespace polyreme::backend
