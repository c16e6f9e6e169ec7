// The launches of a call of Sample and the memory between them, apart from how a kernel is
// launched.
#pragma once

#include <cstdint>
#include <type_traits>

#include "worker/backend/cuda/sample_finish.cuh"
#include "worker/backend/cuda/sample_score.cuh"
#include "worker/backend/cuda/sample_stages.cuh"

namespace polyreme::cuda::sampling {

constexpr int kWantedBlocks = 1024;  // about one wave of them
constexpr int kLeastTokens = 1024;   // that are worth a block

// Blocks of a row. Depends on nothing but the shape, so that a recorded step may be replayed.
inline int BlocksPerRow(int num_samples, int vocabulary) {
  int blocks = (kWantedBlocks + num_samples - 1) / num_samples;
  if (blocks > kMaxBlocks) blocks = kMaxBlocks;
  const int useful = (vocabulary + kLeastTokens - 1) / kLeastTokens;
  return blocks < useful ? blocks : useful;
}

// Lays the arrays of Scratch out one after the other, from `base` on; *bytes: all that they take,
// which is never less for more samples, so that memory for the most serves all.
inline Scratch LayOut(int num_samples, int vocabulary, void* base, int64_t* bytes) {
  Scratch scratch{};
  scratch.blocks = BlocksPerRow(num_samples, vocabulary);
  const int64_t rows = num_samples;
  const int64_t parts = rows + kWantedBlocks;  // no less than rows * blocks
  int64_t offset = 0;
  const auto take = [&](auto*& array, int64_t count) {
    using Element = std::remove_reference_t<decltype(*array)>;
    array = reinterpret_cast<Element*>(static_cast<char*>(base) + offset);
    offset += (count * static_cast<int64_t>(sizeof(Element)) + 255) / 256 * 256;
  };
  take(scratch.scans, parts);
  take(scratch.draws, parts);
  take(scratch.scores, parts);
  take(scratch.tops, parts * kMaxTops);
  take(scratch.cuts, rows);
  take(scratch.num_listed, rows);
  take(scratch.listed, rows * kMaxListed);
  take(scratch.bin_counts, rows * kBins);
  take(scratch.bin_sums, rows * kBins);
  *bytes = offset;
  return scratch;
}

// launch(kernel, blocks, threads, arguments, scratch) for each stage, in order.
template <class Launch>
void LaunchStages(const SampleArguments& arguments, Launch launch) {
  int64_t bytes = 0;
  const Scratch scratch =
      LayOut(arguments.num_samples, arguments.vocabulary, arguments.scratch, &bytes);
  const int rows = arguments.num_samples;
  const int parts = rows * scratch.blocks;
  launch(ScanKernel, parts, kThreads, arguments, scratch);
  launch(CountKernel, parts, kThreads, arguments, scratch);
  launch(NarrowKernel, parts, kThreads, arguments, scratch);
  launch(FinishKernel, rows, kFinishThreads, arguments, scratch);
  launch(ScoreKernel, parts, kScoreThreads, arguments, scratch);
  launch(TopsKernel, rows, kScoreThreads, arguments, scratch);
}

}  // namespace polyreme::cuda::sampling
