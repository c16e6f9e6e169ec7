// The memory between the stages of a call of Sample: how many bytes each of Scratch's arrays takes.
// C++17, without CUDA's headers.
#pragma once

#include <cstdint>

#include "worker/backend/cuda/sample_math.h"

namespace polyreme::cuda::sampling {

constexpr int kWantedBlocks = 1024;  // about one wave of them
constexpr int kMaxListed = 2048;     // a power of two

// In the order of Scratch: scans, draws, scores, tops, cuts, num_listed, listed, bin_counts,
// bin_sums.
constexpr int kScratchArrays = 9;
constexpr int64_t kScratchElementBytes[kScratchArrays] = {16, 16, 16, 8, 32, 4, 8, 4, 8};

// Bytes of array `i`, with what follows aligned. Never less for more samples, so that memory for
// the most serves all.
constexpr int64_t ScratchArrayBytes(int i, int64_t num_samples) {
  const int64_t parts = num_samples + kWantedBlocks;  // no less than samples * blocks of each
  const int64_t counts[kScratchArrays] = {parts,
                                          parts,
                                          parts,
                                          parts * kMaxTops,
                                          num_samples,
                                          num_samples,
                                          num_samples * kMaxListed,
                                          num_samples * kBins,
                                          num_samples * kBins};
  return (counts[i] * kScratchElementBytes[i] + 255) / 256 * 256;
}

}  // namespace polyreme::cuda::sampling

namespace polyreme::cuda {

// Of SampleArguments::scratch. Exact.
constexpr int64_t SampleScratchBytes(int64_t num_samples, int64_t vocabulary) {
  if (num_samples <= 0 || vocabulary <= 0) return 0;
  int64_t bytes = 0;
  for (int i = 0; i < sampling::kScratchArrays; ++i) {
    bytes += sampling::ScratchArrayBytes(i, num_samples);
  }
  return bytes;
}

}  // namespace polyreme::cuda
