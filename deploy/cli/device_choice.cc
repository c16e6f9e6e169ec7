#include "deploy/cli/device_choice.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "deploy/cli/run_apart.h"
#include "parallel/launch/launch_env.h"
#include "worker/backend/cuda/plugin.h"

namespace polyreme::cli {
namespace {

// Whether an NVIDIA driver runs on this host: its control device, its file in /proc, or the door to
// it from a virtual machine of Windows.
bool HasDriver() {
  constexpr const char* kSigns[] = {"/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg"};
  return std::any_of(std::begin(kSigns), std::end(kSigns),
                     [](const char* path) { return access(path, F_OK) == 0; });
}

// A driver that wakes up many GPUs takes seconds.
constexpr absl::Duration kDriverPatience = absl::Minutes(2);

// NotFound: no plugin, or no GPU. Apart, because the driver starts threads: in an agent one of them
// would take the SIGTERM that the agent waits for, and end it on the spot.
absl::Status LookForGpu() {
  return RunApart(
      []() -> absl::Status {
        ASSIGN_OR_RETURN(const cuda::CudaPlugin* const plugin, cuda::OpenCudaPlugin());
        ASSIGN_OR_RETURN(const cuda::GpuSystem system, plugin->describe());
        if (system.gpus.empty()) return NotFound("no GPU is visible");
        return absl::OkStatus();
      },
      kDriverPatience);
}

}  // namespace

absl::StatusOr<std::string> SettleDevice(ServeConfig& config) {
  std::string choice;
  if (config.device == "auto") {
    const absl::Status found =
        HasDriver() ? LookForGpu() : NotFound("no NVIDIA driver runs on this host");
    if (!found.ok() && !absl::IsNotFound(found)) {
      return Annotate(found, "--device auto (--device cpu would not look for a GPU)");
    }
    config.device = found.ok() ? "cuda" : "cpu";
    choice = found.ok() ? "--device auto: computing on the GPU"
                        : fmt::format("--device auto: computing on CPU: {}", Message(found));
  }
  SetDeviceDefaults(config);
  return choice;
}

absl::Status CheckDevice(const ServeConfig& config) {
  if (config.device == "cpu") return absl::OkStatus();
  return Annotate(LookForGpu(), "--device cuda");
}

backend::AttentionChoice AttentionOf(const std::string& flag) {
  if (flag == "own") return backend::AttentionChoice::kOwn;
  if (flag == "flashinfer") return backend::AttentionChoice::kFlashInfer;
  return backend::AttentionChoice::kAuto;
}

std::string CacheDirectory() {
  const launch::Environment environment = launch::ProcessEnvironment();
  if (const auto cache = environment("XDG_CACHE_HOME"); cache.has_value() && !cache->empty()) {
    return *cache + "/polyreme";
  }
  if (const auto home = environment("HOME"); home.has_value() && !home->empty()) {
    return *home + "/.cache/polyreme";
  }
  return "";
}

}  // namespace polyreme::cli
