// The launches of a call of Sample and the memory between them, apart from how a kernel is
// launched.
#pragma once

#include <cstdint>
#include <type_traits>

#include "worker/backend/cuda/sample_finish.cuh"
#include "worker/backend/cuda/sample_score.cuh"
#include "worker/backend/cuda/sample_stages.cuh"

namespace polyreme::cuda::sampling {

constexpr int kLeastTokens = 1024;  // that are worth a block

// Blocks of a row. Depends on nothing but the shape, so that a recorded step may be replayed.
inline int BlocksPerRow(int num_samples, int vocabulary) {
  int blocks = (kWantedBlocks + num_samples - 1) / num_samples;
  if (blocks > kMaxBlocks) blocks = kMaxBlocks;
  const int useful = (vocabulary + kLeastTokens - 1) / kLeastTokens;
  return blocks < useful ? blocks : useful;
}

// Lays the arrays of Scratch out one after the other, from `base` on, as SampleScratchBytes says.
inline Scratch LayOut(int num_samples, int vocabulary, void* base) {
  Scratch scratch{};
  scratch.blocks = BlocksPerRow(num_samples, vocabulary);
  char* next = static_cast<char*>(base);
  int i = 0;
  const auto take = [&](auto*& array) {
    using Element = std::remove_reference_t<decltype(*array)>;
    array = reinterpret_cast<Element*>(next);
    next += ScratchArrayBytes(i++, num_samples);
  };
  static_assert(sizeof(ScanPart) == 16 && sizeof(DrawPart) == 16 && sizeof(ScorePart) == 16 &&
                    sizeof(Cut) == 32,
                "kScratchElementBytes says so");
  take(scratch.scans);
  take(scratch.draws);
  take(scratch.scores);
  take(scratch.tops);
  take(scratch.cuts);
  take(scratch.num_listed);
  take(scratch.listed);
  take(scratch.bin_counts);
  take(scratch.bin_sums);
  return scratch;
}

// launch(kernel, blocks, threads, arguments, scratch) for each stage, in order.
template <class Launch>
void LaunchStages(const SampleArguments& arguments, Launch launch) {
  const Scratch scratch = LayOut(arguments.num_samples, arguments.vocabulary, arguments.scratch);
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
