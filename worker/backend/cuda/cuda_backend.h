// The GPU backend: one GPU, activations, weights and cache of one type.
#pragma once

#include <memory>

#include "parallel/base/status.h"
#include "worker/backend/backend.h"

namespace polyreme::cuda {

// FailedPrecondition: no driver, no GPU, or one too old for this build, no cuBLAS, attention that
// this build or GPU has not. InvalidArgument: a type that is not a float.
absl::StatusOr<std::unique_ptr<backend::Backend>> MakeCudaBackend(
    const backend::BackendOptions& options);

}  // namespace polyreme::cuda
