#include "worker/backend/cuda/sample_kernels.h"

#include "worker/backend/cuda/sample_launch.cuh"

namespace polyreme::cuda {

cudaError_t Sample(cudaStream_t stream, const SampleArguments& arguments) {
  if (arguments.num_samples <= 0) return cudaSuccess;
  if (arguments.vocabulary <= 0 || arguments.vocabulary > sampling::kMaxVocabulary) {
    return cudaErrorInvalidValue;
  }
  sampling::LaunchStages(arguments, [&](auto kernel, int blocks, int threads,
                                        const SampleArguments& a, const sampling::Scratch& s) {
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, stream>>>(a, s);
  });
  return cudaGetLastError();
}

}  // namespace polyreme::cuda
