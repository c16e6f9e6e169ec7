// Log-probabilities of raw rows: of the token in SampleOutput::token, its rank, and the most
// likely.
#pragma once

#include "worker/backend/cuda/sample_row.cuh"

namespace polyreme::cuda::sampling {

constexpr int kScoreThreads = 256;

// Whether a row's log-probabilities are asked for, once its token is known.
__device__ inline bool IsScored(const SampleArguments& a, const ops::SampleSpec& spec, int sample) {
  if (spec.kind == ops::SampleSpec::Kind::kSkip) return false;
  if (spec.kind == ops::SampleSpec::Kind::kDraw && spec.num_logprobs < 0) return false;
  return a.outputs[sample].finite != 0;
}
__device__ inline int NumTops(const SampleArguments& a, const ops::SampleSpec& spec) {
  const int asked = spec.num_logprobs < kMaxTops ? spec.num_logprobs : kMaxTops;
  return asked < a.vocabulary ? asked : a.vocabulary;
}

// The `count` first ranks, in order, given what a thread can say: the first of its own ranks that
// is behind a given one; 0 if there is none. `take(place, rank)` is called by thread 0.
template <class NextOf, class Take>
__device__ void TakeFirst(int count, NextOf next_of, Take take) {
  if (count <= 0) return;
  uint64_t mine = next_of(~uint64_t{0});
  for (int place = 0; place < count; ++place) {
    const uint64_t first = Fold(mine, Larger());
    if (threadIdx.x == 0) take(place, first);
    if (first != 0 && mine == first) mine = next_of(first);
  }
}

__global__ void __launch_bounds__(kScoreThreads) ScoreKernel(SampleArguments a, Scratch scratch) {
  const Part part = PartOf(a, scratch);
  const ops::SampleSpec spec = a.specs[part.sample];
  if (!IsScored(a, spec, part.sample)) return;
  const Reader raw = RawReader(a, part.sample);
  const float largest = ScanOf(scratch, part.sample).largest;
  const float chosen = raw.At(static_cast<unsigned>(a.outputs[part.sample].token));
  double sum = 0;
  int at_least = 0;
  for (int group = part.begin + static_cast<int>(threadIdx.x); group < part.end;
       group += kScoreThreads) {
    float x[4];
    raw.Group(group, x);
    for (int i = 0; i < 4; ++i) {
      if (4 * group + i >= a.vocabulary) continue;
      sum += backend::cpu::ExactExp(Plus(static_cast<double>(x[i]), -static_cast<double>(largest)));
      at_least += x[i] >= chosen ? 1 : 0;
    }
  }
  sum = Fold(sum, Sum());
  at_least = Fold(at_least, Sum());
  if (threadIdx.x == 0) scratch.scores[blockIdx.x] = {sum, at_least};
  uint64_t* tops = scratch.tops + static_cast<int64_t>(blockIdx.x) * kMaxTops;
  TakeFirst(
      NumTops(a, spec),
      [&](uint64_t behind) {
        uint64_t next = 0;
        for (int group = part.begin + static_cast<int>(threadIdx.x); group < part.end;
             group += kScoreThreads) {
          float x[4];
          raw.Group(group, x);
          for (int i = 0; i < 4; ++i) {
            if (4 * group + i >= a.vocabulary) continue;
            const uint64_t rank = RankOf(x[i], 4 * group + i);
            if (rank < behind && rank > next) next = rank;
          }
        }
        return next;
      },
      [&](int place, uint64_t rank) { tops[place] = rank; });
}

// Joins the parts, one block a row.
__global__ void __launch_bounds__(kScoreThreads) TopsKernel(SampleArguments a, Scratch scratch) {
  const int sample = static_cast<int>(blockIdx.x);
  const ops::SampleSpec spec = a.specs[sample];
  if (!IsScored(a, spec, sample)) return;
  const int64_t first_part = static_cast<int64_t>(sample) * scratch.blocks;
  double sum = 0;
  int at_least = 0;
  for (int i = 0; i < scratch.blocks; ++i) {
    const ScorePart part = scratch.scores[first_part + i];
    sum += part.sum;
    at_least += part.at_least;
  }
  const double log_sum =
      static_cast<double>(ScanOf(scratch, sample).largest) + backend::cpu::ExactLog(sum);
  if (threadIdx.x == 0) {
    ops::SampleOutput& out = a.outputs[sample];
    const float chosen = RawReader(a, sample).At(static_cast<unsigned>(out.token));
    out.logprob = static_cast<float>(static_cast<double>(chosen) - log_sum);
    out.rank = at_least;  // equals count as ahead
  }
  const int count = NumTops(a, spec);
  if (count <= 0) return;
  const uint64_t* tops = scratch.tops + first_part * kMaxTops;
  const int64_t out = static_cast<int64_t>(sample) * kMaxTops;
  TakeFirst(
      count,
      [&](uint64_t behind) {
        uint64_t next = 0;
        for (int i = static_cast<int>(threadIdx.x); i < scratch.blocks * count;
             i += kScoreThreads) {
          const uint64_t rank = tops[i / count * kMaxTops + i % count];
          if (rank < behind && rank > next) next = rank;
        }
        return next;
      },
      [&](int place, uint64_t rank) {
        a.top_tokens[out + place] = TokenOf(rank);
        a.top_logprobs[out + place] =
            static_cast<float>(static_cast<double>(ValueOf(rank)) - log_sum);
      });
}

}  // namespace polyreme::cuda::sampling
