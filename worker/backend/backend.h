// Backend = Device + Ops + WeightPacker, and the table of backends.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/base/status.h"
#include "parallel/comm/communicator.h"
#include "parallel/tensor/device.h"
#include "worker/ops/ops.h"
#include "worker/weights/weight.h"

namespace polyreme::backend {

enum class AttentionChoice : uint8_t { kAuto, kFlashInfer, kOwn };

struct BackendOptions {
  int32_t num_threads = 1;   // CPU: threads of this rank, the calling one included
  int32_t device_index = 0;  // GPU ordinal, among those visible to this process
  // GPU: type of activations, weights and cache. The CPU computes in float32 whatever is asked.
  DType dtype = DType::kBF16;
  AttentionChoice attention = AttentionChoice::kAuto;
  // GPU: where the table of product algorithms is kept between runs; empty: nowhere.
  std::string cache_directory = {};
  bool enforce_eager = false;  // GPU: record nothing (Device::ReplayRows is empty)
};

// What the use of a device's memory depends on (device_kind.h).
struct DeviceKind {
  bool gpu = false;
  DType activations = DType::kF32;  // a GPU's weights too
  // Of a GPU.
  AttentionChoice attention = AttentionChoice::kAuto;
  int32_t compute_capability = 0;  // 10 * major + minor
  int32_t num_multiprocessors = 0;
  bool have_fa2 = true;  // FlashInfer's paths, in the plugin's build
  bool have_hopper = true;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  virtual DeviceKind kind() const { return {}; }
  virtual Device& device() = 0;
  virtual ops::Ops& ops() = 0;
  virtual weights::WeightPacker& packer() = 0;
  // Makes communicators over this device's memory (NCCL); null where ProcessGroup's own serve. The
  // backend owns it.
  virtual comm::CommunicatorFactory* communicators() { return nullptr; }
};

// name: "cpu", or "cuda", which opens the plugin (cuda/plugin.h) and fails as that does. NotFound
// lists the names there are.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(std::string_view name,
                                                     const BackendOptions& options);
std::vector<std::string_view> BackendNames();

}  // namespace polyreme::backend
