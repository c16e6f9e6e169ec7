#include "worker/backend/cuda/plugin.h"

#include <elf.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <system_error>

#include "parallel/base/dynamic_library.h"

namespace polyreme::cuda {
namespace {

namespace fs = std::filesystem;

// The loader maps a file as its headers say: what a broken copy lacks would end us by SIGBUS.
absl::Status CheckWhole(const std::string& place) {
  Elf64_Ehdr header;
  std::ifstream file(place, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(&header), sizeof(header))) return absl::OkStatus();
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return absl::OkStatus();  // it will tell
  const uint64_t expected = header.e_shoff + uint64_t{header.e_shnum} * header.e_shentsize;
  std::error_code error;
  const uint64_t got = fs::file_size(place, error);
  if (error || got >= expected) return absl::OkStatus();
  return FailedPrecondition("{} is cut short: expected {} bytes, got {}", place, expected, got);
}

absl::StatusOr<const CudaPlugin*> OpenAt(const std::string& place) {
  RETURN_IF_ERROR(CheckWhole(place));
  ASSIGN_OR_RETURN(DynamicLibrary library, DynamicLibrary::Open(place));
  const CudaPlugin* (*entry)() = nullptr;
  RETURN_IF_ERROR(library.Find(kPluginSymbol, entry));
  const CudaPlugin* const plugin = entry();
  const std::string_view theirs = plugin->build_id == nullptr ? "none" : plugin->build_id;
  if (theirs != PluginBuildId()) {
    return FailedPrecondition(
        "{} is of another build: expected '{}' as this program, got '{}'; take both from one build",
        place, PluginBuildId(), theirs);
  }
  plugin->adopt(GetClockAnchor(), GetLogName());
  library.Leak();
  return plugin;
}

absl::StatusOr<const CudaPlugin*> Open() {
  const char* const named = std::getenv("POLYREME_CUDA_PLUGIN");
  if (named != nullptr && *named != '\0') {
    const std::string place = fs::absolute(named).string();
    if (access(place.c_str(), F_OK) == 0) return OpenAt(place);
    return FailedPrecondition("POLYREME_CUDA_PLUGIN: expected a {}, and there is no {}",
                              kPluginFile, place);
  }
  std::error_code error;
  const fs::path folder = fs::read_symlink("/proc/self/exe", error).parent_path();
  const std::string places[] = {(folder / kPluginFile).string(),
                                (folder.parent_path() / "lib" / kPluginFile).string()};
  for (const std::string& place : places) {
    if (access(place.c_str(), F_OK) == 0) return OpenAt(place);
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
