// CUDA's errors as statuses.
#pragma once

#include <cuda_runtime_api.h>

#include <string_view>

#include "parallel/base/status.h"

namespace polyreme::cuda {

// "what: CUDA says: out of memory (cudaErrorMemoryAllocation)", or ok. ResourceExhausted where
// memory ran out, FailedPrecondition where driver or GPU do not serve, Internal otherwise. An error
// that is not sticky is cleared from the thread, so that the next call does not report it again.
inline absl::Status CudaStatus(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  (void)cudaGetLastError();
  absl::StatusCode code = absl::StatusCode::kInternal;
  switch (error) {
    case cudaErrorMemoryAllocation:
      code = absl::StatusCode::kResourceExhausted;
      break;
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorSystemNotReady:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      code = absl::StatusCode::kFailedPrecondition;
      break;
    default:
      break;
  }
  return MakeStatus(code, fmt::format("{}: CUDA says: {} ({})", what, cudaGetErrorString(error),
                                      cudaGetErrorName(error)));
}

}  // namespace polyreme::cuda

// Returns from the enclosing function of absl::Status or absl::StatusOr.
#define RETURN_IF_CUDA_ERROR(expression, what) \
  RETURN_IF_ERROR(::polyreme::cuda::CudaStatus((expression), (what)))
