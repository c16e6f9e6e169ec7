// Backend = Device + Ops + WeightPacker, and the table of backends.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "parallel/base/status.h"
#include "parallel/tensor/device.h"
#include "worker/ops/ops.h"
#include "worker/weights/weight.h"

namespace polyreme::backend {

struct BackendOptions {
  int32_t num_threads = 1;     // CPU: threads of this rank, the calling one included
  int32_t device_index = 0;    // GPU ordinal
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  virtual Device& device() = 0;
  virtual ops::Ops& ops() = 0;
  virtual weights::WeightPacker& packer() = 0;
};

// name: "cpu" ("cuda" will come as a plugin). NotFound lists the names there are.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(std::string_view name,
                                                     const BackendOptions& options);
std::vector<std::string_view> BackendNames();

}  // namespace polyreme::backend
