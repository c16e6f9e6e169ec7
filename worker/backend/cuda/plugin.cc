#include "worker/backend/cuda/plugin.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "parallel/base/dynamic_library.h"

namespace polyreme::cuda {
namespace {

namespace fs = std::filesystem;

// Where the plugin may be. POLYREME_CUDA_PLUGIN, when set, is the only place.
std::vector<std::string> PlacesOfPlugin() {
  const char* const named = std::getenv("POLYREME_CUDA_PLUGIN");
  if (named != nullptr && *named != '\0') return {fs::absolute(named).string()};
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (error) return {};
  const fs::path folder = program.parent_path();
  return {(folder / kPluginFile).string(), (folder.parent_path() / "lib" / kPluginFile).string()};
}

absl::StatusOr<const CudaPlugin*> Open() {
  const std::vector<std::string> places = PlacesOfPlugin();
  for (const std::string& place : places) {
    if (access(place.c_str(), F_OK) != 0) continue;
    ASSIGN_OR_RETURN(DynamicLibrary library, DynamicLibrary::Open(place));
    const CudaPlugin* (*entry)() = nullptr;
    RETURN_IF_ERROR(library.Find(kPluginSymbol, entry));
    const CudaPlugin* const plugin = entry();
    const std::string_view theirs = plugin->build_id == nullptr ? "none" : plugin->build_id;
    if (theirs != PluginBuildId()) {
      return FailedPrecondition(
          "{} is of another build: expected '{}' as this program, got '{}'; take both from one "
          "build",
          place, PluginBuildId(), theirs);
    }
    plugin->adopt(GetClockAnchor(), GetLogName());
    library.Leak();
    return plugin;
  }
  return NotFound(
      "this installation has no GPU support: {} was looked for at {}; build with POLYREME_CUDA, or "
      "set POLYREME_CUDA_PLUGIN",
      kPluginFile, fmt::join(places, " and "));
}

}  // namespace

absl::StatusOr<const CudaPlugin*> OpenCudaPlugin() {
  // Never destroyed: the plugin stays open as long as the process.
  static const auto& plugin = *new absl::StatusOr<const CudaPlugin*>(Open());
  return plugin;
}

}  // namespace polyreme::cuda
