// The CPU backend: any x86-64, float32 arithmetic whatever the storage, the same bits on each
// instruction set.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "parallel/base/status.h"
#include "worker/backend/backend.h"
#include "worker/backend/cpu/kernels.h"

namespace polyreme::backend {

struct CpuOptions {
  int32_t num_threads = 1;      // the calling one included
  std::optional<cpu::Isa> isa = std::nullopt;  // none: the best that this machine has
};

// InvalidArgument on a bad number of threads; FailedPrecondition when this machine lacks `isa`.
absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuOptions& options);

}  // namespace polyreme::backend
