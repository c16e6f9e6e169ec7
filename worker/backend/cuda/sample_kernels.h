// Sampling on the device; what is drawn and in which order: worker/ops/sampling.h. The same token
// as the CPU's sampler gives for the same logits.
#pragma once

#include "worker/backend/cuda/element.h"
#include "worker/backend/cuda/sample_arguments.h"
#include "worker/backend/cuda/sample_scratch.h"

namespace polyreme::cuda {

// cudaErrorInvalidValue for a vocabulary above 2^20.
cudaError_t Sample(cudaStream_t stream, const SampleArguments& arguments);

}  // namespace polyreme::cuda
