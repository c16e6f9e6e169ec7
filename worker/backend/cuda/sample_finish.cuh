// The last decision on a row's token, by one block a row.
#pragma once

#include "worker/backend/cuda/sample_row.cuh"

namespace polyreme::cuda::sampling {

constexpr int kFinishThreads = 512;

struct See {
  __device__ void operator()(float, int) const {}
};

// The draw of one of the row's blocks, for each thread another.
__device__ inline DrawPart DrawOfBlock(const Scratch& scratch, int sample) {
  const auto block = static_cast<int>(threadIdx.x);
  if (block >= scratch.blocks) return {0, -1};
  return scratch.draws[static_cast<int64_t>(sample) * scratch.blocks + block];
}

// How many of keys[0, count), the first in rank first, are needed for their weights to reach
// `goal`; at least 1. Each thread adds up a stretch.
__device__ inline int NumberToReach(uint64_t goal, uint64_t before, const uint64_t* keys,
                                    int count) {
  __shared__ int needed;
  if (threadIdx.x == 0) needed = count;
  const int each = (count + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x);
  const int begin = static_cast<int>(threadIdx.x) * each;
  const int end = begin + each < count ? begin + each : count;
  uint64_t sum = 0;
  for (int i = begin; i < end; ++i) sum += WeightOf(ValueOf(keys[i]));
  uint64_t reached = before + SumBefore(sum);  // synchronises: `needed` is set
  for (int i = begin; i < end; ++i) {
    reached += WeightOf(ValueOf(keys[i]));
    if (reached >= goal) {
      atomicMin(&needed, i + 1);
      break;
    }
  }
  __syncthreads();
  const int found = needed;
  __syncthreads();
  return found;
}

// The row's border lies among few tokens: sorts them. What Narrow has drawn competes.
__device__ inline DrawPart DrawFromListed(const SampleArguments& a, const Scratch& scratch,
                                          const ops::SampleSpec& spec, const ScaledRow& row,
                                          const Cut& cut, int sample) {
  __shared__ uint64_t keys[kMaxListed];
  const int step = static_cast<int>(blockDim.x);
  int places = 2;
  while (places < cut.listed) places *= 2;
  const uint64_t* listed = scratch.listed + static_cast<int64_t>(sample) * kMaxListed;
  for (int i = static_cast<int>(threadIdx.x); i < places; i += step) {
    keys[i] = i < cut.listed ? listed[i] : 0;
  }
  SortDescending(keys, places);
  int kept = cut.listed;
  const bool keeps_k = KeepsK(spec, a.vocabulary);
  if (keeps_k) {
    // Without top-p only the border's bin is listed.
    const int k = KeepsP(spec) ? spec.top_k : spec.top_k - cut.ahead;
    kept = k < kept ? k : kept;
  }
  if (KeepsP(spec)) {
    uint64_t before = cut.before;
    uint64_t total = cut.total;
    if (keeps_k) {
      uint64_t sum = 0;
      for (int i = static_cast<int>(threadIdx.x); i < kept; i += step) {
        sum += WeightOf(ValueOf(keys[i]));
      }
      total = Fold(sum, Sum());
      before = 0;
    }
    kept = NumberToReach(GoalOf(spec.top_p, total), before, keys, kept);
  }
  DrawPart drawn = DrawOfBlock(scratch, sample);
  for (int i = static_cast<int>(threadIdx.x); i < kept; i += step) {
    const float y = ValueOf(keys[i]);
    const int token = TokenOf(keys[i]);
    if (y < row.least) continue;
    const uint32_t word = row.noise.WordsOf(token / 4)[token % 4];
    Improve(drawn, Plus(static_cast<double>(y), backend::cpu::GumbelOf(word)), token);
  }
  return BestDraw(drawn);
}

// Descends over the bits of ranks to the token at which the running sum of 1 (by_count) or of
// weights, from the first in rank on, reaches `goal`: its rank. For rows whose border lies among
// many tokens of nearly or quite the same value. The sum over the row is at least `goal`.
__device__ inline uint64_t FindBorder(const ScaledRow& row, int groups, uint64_t goal,
                                      bool by_count) {
  constexpr int kDigit = 11;
  constexpr int kPlaces = 1 << kDigit;
  __shared__ unsigned low[kPlaces];
  __shared__ unsigned high[kPlaces];
  __shared__ int place;
  __shared__ unsigned long long passed;
  const int step = static_cast<int>(blockDim.x);
  uint64_t border = 0;
  // Bits 0 to 21 tell ids apart; those between an id and a value are ones in all ranks.
  const int shifts[] = {53, 42, 32, 11, 0};
  int above = 64;
  for (const int shift : shifts) {
    const int bits = above - shift < kDigit ? above - shift : kDigit;
    for (int i = static_cast<int>(threadIdx.x); i < kPlaces; i += step) low[i] = high[i] = 0;
    __syncthreads();
    for (int group = static_cast<int>(threadIdx.x); group < groups; group += step) {
      float y[4];
      row.Group(group, y);
      for (int i = 0; i < 4; ++i) {
        if (!(y[i] > kBanned)) continue;
        const uint64_t rank = RankOf(y[i], 4 * group + i);
        if (above < 64 && (rank >> above) != (border >> above)) continue;
        const auto digit = static_cast<int>((rank >> shift) & ((uint64_t{1} << bits) - 1));
        AddWide(&low[digit], &high[digit], by_count ? 1 : WeightOf(y[i]));
      }
    }
    __syncthreads();
    // Thread t looks at the places from the largest down, a stretch each.
    const int each = kPlaces / step;
    const int last = kPlaces - 1 - static_cast<int>(threadIdx.x) * each;
    uint64_t sum = 0;
    for (int i = last; i > last - each; --i) {
      sum += (static_cast<uint64_t>(high[i]) << 32) + low[i];
    }
    uint64_t before = SumBefore(sum);
    for (int i = last; i > last - each; --i) {
      const uint64_t more = (static_cast<uint64_t>(high[i]) << 32) + low[i];
      if (before < goal && goal <= before + more) {
        place = i;
        passed = before;
      }
      before += more;
    }
    __syncthreads();
    border |= static_cast<uint64_t>(place) << shift;
    goal -= passed;
    above = shift;
    if (shift == 32) {
      border |= uint64_t{0xffc00000u};
      above = 22;
    }
    __syncthreads();
  }
  return border;
}

// Count, or weight, of ranks not behind `floor`.
__device__ inline uint64_t SumFrom(const ScaledRow& row, int groups, uint64_t floor,
                                   bool by_count) {
  uint64_t sum = 0;
  for (int group = static_cast<int>(threadIdx.x); group < groups;
       group += static_cast<int>(blockDim.x)) {
    float y[4];
    row.Group(group, y);
    for (int i = 0; i < 4; ++i) {
      if (!(y[i] > kBanned) || RankOf(y[i], 4 * group + i) < floor) continue;
      sum += by_count ? 1 : WeightOf(y[i]);
    }
  }
  return Fold(sum, Sum());
}

// Too many tokens to sort: the whole row again and again, by this block alone.
__device__ inline DrawPart DrawFromRow(const SampleArguments& a, const ops::SampleSpec& spec,
                                       const ScaledRow& row) {
  const int groups = (a.vocabulary + 3) / 4;
  uint64_t floor = 0;
  if (KeepsK(spec, a.vocabulary)) {
    const auto k = static_cast<uint64_t>(spec.top_k);
    if (SumFrom(row, groups, 0, true) > k) floor = FindBorder(row, groups, k, true);
  }
  if (KeepsP(spec)) {
    const uint64_t total = SumFrom(row, groups, floor, false);
    floor = FindBorder(row, groups, GoalOf(spec.top_p, total), false);
  }
  return DrawFrom(
      row, 0, groups, [&](float y, int token) { return RankOf(y, token) >= floor; }, See());
}

__device__ inline int TokenOfRow(const SampleArguments& a, const Scratch& scratch,
                                 const ops::SampleSpec& spec, const RowScan& scan, int sample) {
  if (!IsDrawn(spec)) return TokenOf(scan.first);
  if (!IsFiltered(a, spec)) return BestDraw(DrawOfBlock(scratch, sample)).token;
  const ScaledRow row = ScaledRowOf(a, spec, scan, sample);
  const Cut cut = scratch.cuts[sample];
  if (cut.listed > kMaxListed) return DrawFromRow(a, spec, row).token;
  return DrawFromListed(a, scratch, spec, row, cut, sample).token;
}

__global__ void __launch_bounds__(kFinishThreads, 1)
    FinishKernel(SampleArguments a, Scratch scratch) {
  const int sample = static_cast<int>(blockIdx.x);
  const ops::SampleSpec spec = a.specs[sample];
  ops::SampleOutput out;
  if (spec.kind != ops::SampleSpec::Kind::kSkip) {
    const RowScan scan = ScanOf(scratch, sample);
    const bool draws = spec.kind == ops::SampleSpec::Kind::kDraw;
    if (draws ? !CanDraw(scan) : !scan.finite) {
      out.finite = 0;
    } else if (draws) {
      const int token = TokenOfRow(a, scratch, spec, scan, sample);
      out.token = token < 0 ? 0 : token;
      if (threadIdx.x == 0 && a.token_counts != nullptr && HasPenalty(spec)) {
        atomicAdd(a.token_counts + static_cast<int64_t>(spec.slot) * a.vocabulary + out.token, 1u);
      }
    } else {
      out.token = spec.target;
    }
  }
  if (threadIdx.x == 0) a.outputs[sample] = out;
}

}  // namespace polyreme::cuda::sampling
