#include "worker/backend/cuda/describe.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <string>
#include <utility>

#include "parallel/base/dynamic_library.h"
#include "parallel/comm/nccl_library.h"
#include "worker/backend/cuda/cublas_library.h"
#include "worker/backend/cuda/cuda_status.h"

namespace polyreme::cuda {
namespace {

// The few declarations of nvml.h that we need; the toolkit does not always bring that header.
using NvmlDevice = void*;
struct NvmlMemory {
  unsigned long long total = 0;
  unsigned long long free = 0;
  unsigned long long used = 0;
};
struct NvmlPci {
  char bus_id_legacy[16] = {};
  unsigned int domain = 0;
  unsigned int bus = 0;
  unsigned int device = 0;
  unsigned int pci_device_id = 0;
  unsigned int pci_subsystem_id = 0;
  char bus_id[32] = {};
};
constexpr int kNvmlSuccess = 0;
constexpr int kNvmlP2pNvlink = 2;  // NVML_P2P_CAPS_INDEX_NVLINK
constexpr int kNvmlP2pOk = 0;      // NVML_P2P_STATUS_OK
constexpr unsigned int kMaxLinks = 36;

// NVML's levels of the nearest common ancestor, as nvidia-smi topo names them.
std::string NameOfLevel(int level) {
  switch (level) {
    case 0:
    case 10:
      return "PIX";
    case 20:
      return "PXB";
    case 30:
      return "PHB";
    case 40:
      return "NODE";
    case 50:
      return "SYS";
    default:
      return "?";
  }
}

// The driver's management library while it is open.
class Nvml {
 public:
  static std::optional<Nvml> Open() {
    absl::StatusOr<DynamicLibrary> library = DynamicLibrary::Open("libnvidia-ml.so.1");
    if (!library.ok()) return std::nullopt;
    Nvml nvml(*std::move(library));
    if (!nvml.FindAll().ok() || nvml.init_() != kNvmlSuccess) return std::nullopt;
    nvml.library_.Leak();
    return nvml;
  }

  std::string DriverVersion() const {
    std::array<char, 96> text{};
    if (driver_version_(text.data(), text.size() - 1) != kNvmlSuccess) return "";
    return text.data();
  }
  // Null when NVML does not know it.
  NvmlDevice Find(const std::string& bus_id) const {
    NvmlDevice device = nullptr;
    return handle_by_bus_id_(bus_id.c_str(), &device) == kNvmlSuccess ? device : nullptr;
  }
  std::optional<NvmlMemory> Memory(NvmlDevice device) const {
    NvmlMemory memory;
    if (device == nullptr || memory_info_(device, &memory) != kNvmlSuccess) return std::nullopt;
    return memory;
  }
  // "NV18", "PIX", ... or "?".
  std::string Link(NvmlDevice from, NvmlDevice to) const {
    if (from == nullptr || to == nullptr) return "?";
    int status = -1;
    if (p2p_status_ != nullptr && p2p_status_(from, to, kNvmlP2pNvlink, &status) == kNvmlSuccess &&
        status == kNvmlP2pOk) {
      const int links = CountLinks(from, to);
      if (links > 0) return fmt::format("NV{}", links);
    }
    int level = -1;
    if (common_ancestor_(from, to, &level) != kNvmlSuccess) return "?";
    return NameOfLevel(level);
  }

 private:
  explicit Nvml(DynamicLibrary library) : library_(std::move(library)) {}

  absl::Status FindAll() {
    RETURN_IF_ERROR(library_.Find("nvmlInit_v2", init_));
    RETURN_IF_ERROR(library_.Find("nvmlSystemGetDriverVersion", driver_version_));
    RETURN_IF_ERROR(library_.Find("nvmlDeviceGetHandleByPciBusId_v2", handle_by_bus_id_));
    RETURN_IF_ERROR(library_.Find("nvmlDeviceGetMemoryInfo", memory_info_));
    RETURN_IF_ERROR(library_.Find("nvmlDeviceGetTopologyCommonAncestor", common_ancestor_));
    library_.FindOptional("nvmlDeviceGetP2PStatus", p2p_status_);
    library_.FindOptional("nvmlDeviceGetNvLinkState", link_state_);
    library_.FindOptional("nvmlDeviceGetNvLinkRemotePciInfo_v2", link_remote_);
    library_.FindOptional("nvmlDeviceGetPciInfo_v3", pci_info_);
    return absl::OkStatus();
  }

  // Links of `from` that end at `to`; where none does but NVLink connects them, they go through
  // switches, and all of them count.
  int CountLinks(NvmlDevice from, NvmlDevice to) const {
    if (link_state_ == nullptr) return 0;
    NvmlPci there;
    const bool known = pci_info_ != nullptr && pci_info_(to, &there) == kNvmlSuccess;
    int active = 0, direct = 0;
    for (unsigned int link = 0; link < kMaxLinks; ++link) {
      unsigned int on = 0;
      if (link_state_(from, link, &on) != kNvmlSuccess || on == 0) continue;
      ++active;
      NvmlPci remote;
      if (!known || link_remote_ == nullptr || link_remote_(from, link, &remote) != kNvmlSuccess) {
        continue;
      }
      direct +=
          remote.domain == there.domain && remote.bus == there.bus && remote.device == there.device;
    }
    return direct > 0 ? direct : active;
  }

  DynamicLibrary library_;
  int (*init_)() = nullptr;
  int (*driver_version_)(char*, unsigned int) = nullptr;
  int (*handle_by_bus_id_)(const char*, NvmlDevice*) = nullptr;
  int (*memory_info_)(NvmlDevice, NvmlMemory*) = nullptr;
  int (*common_ancestor_)(NvmlDevice, NvmlDevice, int*) = nullptr;
  int (*p2p_status_)(NvmlDevice, NvmlDevice, int, int*) = nullptr;        // or null
  int (*link_state_)(NvmlDevice, unsigned int, unsigned int*) = nullptr;  // or null
  int (*link_remote_)(NvmlDevice, unsigned int, NvmlPci*) = nullptr;      // or null
  int (*pci_info_)(NvmlDevice, NvmlPci*) = nullptr;                       // or null
};

std::string NameOfCuda(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

absl::Status SetFreeBytes(int device, GpuDescription& gpu) {
  size_t free = 0, total = 0;
  RETURN_IF_CUDA_ERROR(cudaSetDevice(device), "cudaSetDevice");
  RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  gpu.free_bytes = static_cast<int64_t>(free);
  return absl::OkStatus();
}

absl::StatusOr<GpuDescription> Describe(int device) {
  cudaDeviceProp properties;
  const std::string what = fmt::format("describing GPU {}", device);
  RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, device), what);
  std::array<char, 32> bus_id{};
  RETURN_IF_CUDA_ERROR(cudaDeviceGetPCIBusId(bus_id.data(), bus_id.size(), device), what);
  GpuDescription gpu;
  gpu.index = device;
  gpu.name = properties.name;
  gpu.bus_id = bus_id.data();
  for (char& c : gpu.bus_id) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  gpu.compute_capability = 10 * properties.major + properties.minor;
  gpu.multiprocessors = properties.multiProcessorCount;
  gpu.total_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  return gpu;
}

// Devices of NVML by place in system.gpus.
absl::StatusOr<std::vector<NvmlDevice>> DescribeAll(const std::optional<Nvml>& nvml, int count,
                                                    GpuSystem& system) {
  std::vector<NvmlDevice> devices;
  for (int i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(GpuDescription gpu, Describe(i));
    devices.push_back(nvml.has_value() ? nvml->Find(gpu.bus_id) : nullptr);
    std::optional<NvmlMemory> memory;
    if (nvml.has_value()) memory = nvml->Memory(devices.back());
    if (memory.has_value()) {
      gpu.free_bytes = static_cast<int64_t>(memory->free);
    } else {
      RETURN_IF_ERROR(SetFreeBytes(i, gpu));
    }
    system.gpus.push_back(std::move(gpu));
  }
  return devices;
}

}  // namespace

absl::StatusOr<int> CountGpus() {
  // A run time works with drivers of its own major version and newer ones.
  constexpr int kNeeded = CUDART_VERSION / 1000 * 1000;
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return count;
  (void)cudaGetLastError();
  int driver = 0;
  (void)cudaDriverGetVersion(&driver);
  if (driver == 0) {
    return NotFound(
        "no NVIDIA driver: expected one for CUDA {} or newer (libcuda.so.1), found none",
        NameOfCuda(kNeeded));
  }
  if (driver < kNeeded || error == cudaErrorInsufficientDriver) {
    return FailedPrecondition(
        "the NVIDIA driver is too old: it is for CUDA {}, and this build needs CUDA {} or newer",
        NameOfCuda(driver), NameOfCuda(kNeeded));
  }
  if (error == cudaSuccess || error == cudaErrorNoDevice) {
    return NotFound(
        "no GPU: the driver (for CUDA {}) shows none to this process; see CUDA_VISIBLE_DEVICES",
        NameOfCuda(driver));
  }
  return FailedPrecondition("no GPU can be used: {}", Message(CudaStatus(error, "counting GPUs")));
}

absl::StatusOr<GpuSystem> DescribeSystem() {
  ASSIGN_OR_RETURN(const int count, CountGpus());
  GpuSystem system;
  int driver = 0;
  RETURN_IF_CUDA_ERROR(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  system.cuda_version = NameOfCuda(driver);
  const std::optional<Nvml> nvml = Nvml::Open();
  system.driver = nvml.has_value() ? nvml->DriverVersion() : "?";
  ASSIGN_OR_RETURN(const std::vector<NvmlDevice> devices, DescribeAll(nvml, count, system));
  for (int from = 0; from < count; ++from) {
    for (int to = 0; to < count; ++to) {
      if (from == to) continue;
      GpuLink& link = system.links.emplace_back();
      link.from = from;
      link.to = to;
      link.kind = nvml.has_value() ? nvml->Link(devices[static_cast<size_t>(from)],
                                                devices[static_cast<size_t>(to)])
                                   : "?";
    }
  }
  if (const auto nccl = comm::OpenNccl(); nccl.ok()) system.nccl_version = (*nccl)->VersionName();
  if (auto cublas = CublasLibrary::FindVersion(); cublas.ok()) {
    system.cublas_version = *std::move(cublas);
  }
  return system;
}

}  // namespace polyreme::cuda
