// One row of logits as kernels see it, and where the stages of a call leave their results.
#pragma once

#include "worker/backend/cuda/sample_arguments.h"
#include "worker/backend/cuda/sample_block.cuh"
#include "worker/backend/cuda/sample_math.h"
#include "worker/backend/cuda/sample_scratch.h"

namespace polyreme::cuda::sampling {

constexpr int kMaxBlocks = 32;    // of a row: a warp looks at all of them at once

// Of one block's part of a row: the treated row's first in rank, the raw row's largest.
struct ScanPart {
  uint64_t first;
  float largest;
  int finite;
};
// Of one block's part of a row: the largest of value + noise; token -1 if there is none.
struct DrawPart {
  double value;
  int token;
};
struct ScorePart {
  double sum;  // of e^(raw - largest)
  int at_least;
};
// Where a filter's border lies. Tokens of bins before `bin` are kept.
struct Cut {
  int bin;
  int ahead;        // tokens of bins before
  int listed;       // tokens that are to be listed for a decision
  uint64_t before;  // weight of all bins before
  uint64_t total;   // weight of all
};

// All pointers are into SampleArguments::scratch, by sample first.
struct Scratch {
  int blocks;                    // per row
  ScanPart* scans;               // [S, blocks]
  DrawPart* draws;               // [S, blocks]
  ScorePart* scores;             // [S, blocks]
  uint64_t* tops;                // [S, blocks, kMaxTops] ranks
  Cut* cuts;                     // [S]
  unsigned* num_listed;          // [S]
  uint64_t* listed;              // [S, kMaxListed] ranks of scaled values, in any order
  unsigned* bin_counts;          // [S, kBins]
  unsigned long long* bin_sums;  // [S, kBins]
};

// Which of a row's groups of four tokens (one Philox call each) a block takes, and which row.
struct Part {
  int sample;
  int block;
  int begin;
  int end;
};
__device__ inline Part PartOf(const SampleArguments& a, const Scratch& scratch) {
  Part part;
  part.sample = static_cast<int>(blockIdx.x) / scratch.blocks;
  part.block = static_cast<int>(blockIdx.x) % scratch.blocks;
  const int groups = (a.vocabulary + 3) / 4;
  const int size = (groups + scratch.blocks - 1) / scratch.blocks;
  part.begin = part.block * size < groups ? part.block * size : groups;
  part.end = part.begin + size < groups ? part.begin + size : groups;
  return part;
}

// Reads tokens of a row, four at a time where alignment allows; never beyond the vocabulary.
struct Reader {
  const float* row;
  int vocabulary;
  unsigned columns;  // of one shard
  int64_t stride;    // from one shard's part of the row to the next
  bool wide;

  __device__ float At(unsigned token) const {
    if (token < columns) return row[token];
    return row[static_cast<int64_t>(token / columns) * stride + token % columns];
  }
  __device__ void Group(int group, float (&x)[4]) const {
    const unsigned token = 4u * static_cast<unsigned>(group);
    if (wide && token + 4 <= static_cast<unsigned>(vocabulary)) {
      const float* from = row + token;
      if (token >= columns) {
        from = row + static_cast<int64_t>(token / columns) * stride + token % columns;
      }
      const float4 four = *reinterpret_cast<const float4*>(from);
      x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
      return;
    }
    for (unsigned i = 0; i < 4; ++i) {
      x[i] = token + i < static_cast<unsigned>(vocabulary) ? At(token + i) : kBanned;
    }
  }
};

__device__ inline bool Aligned(const void* pointer, int64_t columns) {
  return columns % 4 == 0 && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}
__device__ inline Reader RawReader(const SampleArguments& a, int sample) {
  return {a.logits + sample * a.columns, a.vocabulary, static_cast<unsigned>(a.columns),
          a.columns * a.num_samples, Aligned(a.logits, a.columns)};
}
__device__ inline float* WorkspaceRow(const SampleArguments& a, int sample) {
  return a.workspace + static_cast<int64_t>(sample) * a.vocabulary;
}
// Bias, bans or penalties: the row is read from the workspace once it has been treated.
__device__ inline bool NeedsTreatment(const SampleArguments& a, const ops::SampleSpec& spec) {
  return spec.kind == ops::SampleSpec::Kind::kDraw &&
         (spec.only_listed || spec.bias_begin < spec.bias_end ||
          (a.token_counts != nullptr && HasPenalty(spec)));
}
__device__ inline Reader TreatedReader(const SampleArguments& a, const ops::SampleSpec& spec,
                                       int sample) {
  if (!NeedsTreatment(a, spec)) return RawReader(a, sample);
  return {WorkspaceRow(a, sample), a.vocabulary, static_cast<unsigned>(a.vocabulary), 0,
          Aligned(a.workspace, a.vocabulary)};
}

// What the first stage has found of a whole row.
struct RowScan {
  uint64_t first;  // of the treated row
  float largest;   // of the raw row
  bool finite;
};
// Each warp for itself: a lane reads one part.
__device__ inline RowScan ScanOf(const Scratch& scratch, int sample) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  ScanPart all{0, kBanned, 1};
  if (lane < scratch.blocks) {
    all = scratch.scans[static_cast<int64_t>(sample) * scratch.blocks + lane];
  }
  for (int lanes = 16; lanes > 0; lanes >>= 1) {
    all.first = Larger()(all.first, __shfl_xor_sync(kWholeWarp, all.first, lanes));
    all.largest = Larger()(all.largest, __shfl_xor_sync(kWholeWarp, all.largest, lanes));
    all.finite &= __shfl_xor_sync(kWholeWarp, all.finite, lanes);
  }
  return {all.first, all.largest, all.finite != 0};
}
// Something may be drawn: the row is good and its treatment has not left the numbers.
__device__ inline bool CanDraw(const RowScan& scan) {
  return scan.finite && scan.first != 0 && IsNumber(ValueOf(scan.first));
}

// A treated row over its largest value and temperature.
struct ScaledRow {
  Reader reader;
  float largest;
  float temperature;
  float least;  // below it min-p drops
  backend::cpu::NoiseKey noise;

  __device__ void Group(int group, float (&y)[4]) const {
    reader.Group(group, y);
    for (float& value : y) value = Scaled(value, largest, temperature);
  }
};
__device__ inline ScaledRow ScaledRowOf(const SampleArguments& a, const ops::SampleSpec& spec,
                                        const RowScan& scan, int sample) {
  return {TreatedReader(a, spec, sample), ValueOf(scan.first), spec.temperature, LeastOf(spec),
          NoiseOf(spec)};
}
__device__ inline bool IsDrawn(const ops::SampleSpec& spec) {
  return spec.kind == ops::SampleSpec::Kind::kDraw && spec.temperature != 0;
}
__device__ inline bool IsFiltered(const SampleArguments& a, const ops::SampleSpec& spec) {
  return IsDrawn(spec) && (KeepsK(spec, a.vocabulary) || KeepsP(spec));
}

// The better of all threads' draws; at equal values the lower token.
__device__ inline DrawPart BestDraw(DrawPart mine) {
  const double none = -INFINITY;
  const double value = Fold(mine.token < 0 ? none : mine.value, Larger());
  const bool best = mine.token >= 0 && mine.value == value;
  const unsigned token = Fold(best ? ~static_cast<unsigned>(mine.token) : 0u, Larger());
  return {value, token == 0 ? -1 : static_cast<int>(~token)};
}

__device__ inline void Improve(DrawPart& best, double value, int token) {
  if (best.token < 0 || value > best.value || (value == best.value && token < best.token)) {
    best = {value, token};
  }
}

// The largest of value + noise among the tokens of groups [begin, end) that `keep(value, token)`
// keeps. Fast noise finds the few that may win, and exact noise decides among them. `see(value,
// token)` is called once with every value there is.
template <class Keep, class See>
__device__ DrawPart DrawFrom(const ScaledRow& row, int begin, int end, Keep keep, See see) {
  const int step = static_cast<int>(blockDim.x);
  float best = kBanned;
  for (int group = begin + static_cast<int>(threadIdx.x); group < end; group += step) {
    float y[4];
    row.Group(group, y);
    float largest = kBanned;
    for (int i = 0; i < 4; ++i) {
      if (!(y[i] > kBanned)) continue;
      see(y[i], 4 * group + i);
      if (y[i] < row.least || !keep(y[i], 4 * group + i)) y[i] = kBanned;
      largest = fmaxf(largest, y[i]);
    }
    // Most of a vocabulary cannot win with any noise.
    if (!(largest > kBanned) || largest + kAboveGumbel < best) continue;
    const backend::cpu::PhiloxWords words = row.noise.WordsOf(group);
    for (int i = 0; i < 4; ++i) {
      if (y[i] > kBanned) best = fmaxf(best, y[i] + FastGumbelOf(words[i]));
    }
  }
  const float bound = Fold(best, Larger()) - kGumbelSlack;
  DrawPart drawn{0, -1};
  if (best >= bound && best > kBanned) {
    for (int group = begin + static_cast<int>(threadIdx.x); group < end; group += step) {
      float y[4];
      row.Group(group, y);
      const float largest = fmaxf(fmaxf(y[0], y[1]), fmaxf(y[2], y[3]));
      if (!(largest > kBanned) || largest + kAboveGumbel < bound) continue;
      const backend::cpu::PhiloxWords words = row.noise.WordsOf(group);
      for (int i = 0; i < 4; ++i) {
        const int token = 4 * group + i;
        if (!(y[i] > kBanned) || y[i] < row.least || !keep(y[i], token)) continue;
        if (y[i] + FastGumbelOf(words[i]) < bound) continue;
        Improve(drawn, Plus(static_cast<double>(y[i]), backend::cpu::GumbelOf(words[i])), token);
      }
    }
  }
  return BestDraw(drawn);
}

}  // namespace polyreme::cuda::sampling
