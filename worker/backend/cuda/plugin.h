// Opens libpolyreme_cuda.so, where everything that needs CUDA lives, when a GPU is asked for.
//
// The plugin is looked for beside the program and in ../lib from there; POLYREME_CUDA_PLUGIN, when
// set, names the only place. C++ types cross its border, so that it must come of the same build:
// the ids are compared. It carries its own copy of the few layers it stands on, hidden, and the
// CUDA run time; cuBLAS and NCCL it opens itself.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "parallel/base/process_identity.h"
#include "parallel/base/status.h"
#include "parallel/comm/nccl_communicator.h"
#include "worker/backend/backend.h"

namespace polyreme::cuda {

// One GPU that this process may use.
struct GpuDescription {
  int32_t index = 0;
  std::string name;
  std::string bus_id;              // "0000:1b:00.0"
  int32_t compute_capability = 0;  // 10 * major + minor
  int32_t multiprocessors = 0;
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;
};
// How two GPUs reach each other.
struct GpuLink {
  int32_t from = 0;
  int32_t to = 0;
  std::string kind;  // "NV18" (NVLink, 18 links), "PIX", "PHB", "SYS" as nvidia-smi topo names them
};
struct GpuSystem {
  std::string driver;        // "580.159.04"
  std::string cuda_version;  // of the driver, "13.0"
  std::string nccl_version;  // empty: there is none
  std::string cublas_version;
  std::vector<GpuDescription> gpus;
  std::vector<GpuLink> links;
};
// What --measure adds.
struct GpuMeasurement {
  int32_t index = 0;
  double read_bytes_per_second = 0;    // of device memory, read only
  double copy_bytes_per_second = 0;    // read + written
  double upload_bytes_per_second = 0;  // pinned host to device
  double gemm_flops = 0;               // the activations' type, large square-ish product
};

// The plugin's table of functions.
struct CudaPlugin {
  const char* build_id = nullptr;
  // Called once, before the others: the plugin's own copy of parallel/base goes on as the
  // program's.
  void (*adopt)(const ClockAnchor& clock, const std::string& log_name) = nullptr;
  absl::StatusOr<GpuSystem> (*describe)() = nullptr;
  absl::StatusOr<GpuMeasurement> (*measure)(int32_t index) = nullptr;
  // All-reduce over the first num_gpus GPUs, a thread each.
  absl::StatusOr<std::vector<comm::AllReduceTiming>> (*measure_all_reduce)(int32_t num_gpus) =
      nullptr;
  absl::StatusOr<std::unique_ptr<backend::Backend>> (*make_backend)(
      const backend::BackendOptions& options) = nullptr;
};
// The plugin's only symbol: `const CudaPlugin* polyreme_cuda_plugin()`, extern "C".
inline constexpr char kPluginSymbol[] = "polyreme_cuda_plugin";
inline constexpr char kPluginFile[] = "libpolyreme_cuda.so";

// Opens it once per process; later calls return the same. NotFound: no plugin, and where it was
// looked for. FailedPrecondition: POLYREME_CUDA_PLUGIN names no file, one of another build, one cut
// short, or what the loader said. Any thread.
absl::StatusOr<const CudaPlugin*> OpenCudaPlugin();

// The id both sides are compared by: version, compiler and a hash of the headers whose types cross,
// set by CMake.
const char* PluginBuildId();

}  // namespace polyreme::cuda
