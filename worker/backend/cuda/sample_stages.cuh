// The stages of a call of Sample, one kernel each; a stage reads what an earlier kernel has
// written, and no block waits for another. A row is shared out over several blocks, except in
// FinishKernel (sample_finish.cuh).
//
//   Scan    good or not, the largest of the raw row, treatment, the first of the treated row
//   Count   rows with filters: how many tokens (and what weight) each bin of values has
//           rows without: the draw
//   Narrow  rows with filters: the bin that holds the border; draws from the bins before it, and
//           lists the tokens that only sorting can decide on
//   Finish  the border, the token, its count
//   Score, Tops   log-probabilities
//
// What needs none of a stage's work leaves it at once.
#pragma once

#include "worker/backend/cuda/sample_row.cuh"

namespace polyreme::cuda::sampling {

constexpr int kThreads = 256;

__device__ inline uint64_t FirstOf(const float (&x)[4], int group, int vocabulary, uint64_t first) {
  for (int i = 0; i < 4; ++i) {
    const int token = 4 * group + i;
    if (token >= vocabulary || x[i] != x[i]) continue;
    first = Larger()(first, RankOf(x[i], token));
  }
  return first;
}

// Adds the biases of tokens [begin, end) to x in the list's order: a token that is listed twice
// belongs to one thread.
__device__ inline void AddBiases(const SampleArguments& a, const ops::SampleSpec& spec, int begin,
                                 int end, float* x) {
  __shared__ int tokens[kThreads];
  __shared__ float values[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  for (int base = spec.bias_begin; base < spec.bias_end; base += kThreads) {
    const int count = spec.bias_end - base < kThreads ? spec.bias_end - base : kThreads;
    if (thread < count) {
      tokens[thread] = a.bias_tokens[base + thread];
      values[thread] = a.bias_values[base + thread];
    }
    __syncthreads();
    for (int i = 0; i < count; ++i) {
      const int token = tokens[i];
      if (token % kThreads == thread && token >= begin && token < end) {
        x[token] = Plus(x[token], values[i]);
      }
    }
    __syncthreads();
  }
}

// Of groups [part.begin, part.end), copied to the workspace (or banned) before.
__device__ inline uint64_t TreatPart(const SampleArguments& a, const ops::SampleSpec& spec,
                                     const Part& part, const Reader& raw) {
  float* x = WorkspaceRow(a, part.sample);
  const int begin = 4 * part.begin;
  const int end = 4 * part.end < a.vocabulary ? 4 * part.end : a.vocabulary;
  __syncthreads();
  if (spec.only_listed) {
    for (int i = spec.allowed_begin + static_cast<int>(threadIdx.x); i < spec.allowed_end;
         i += kThreads) {
      const int token = a.allowed_tokens[i];
      if (token >= begin && token < end) x[token] = raw.At(static_cast<unsigned>(token));
    }
    __syncthreads();
  }
  AddBiases(a, spec, begin, end, x);
  __syncthreads();
  const bool penalised = a.token_counts != nullptr && HasPenalty(spec);
  const uint32_t* counts =
      penalised ? a.token_counts + static_cast<int64_t>(spec.slot) * a.vocabulary : nullptr;
  uint64_t first = 0;
  for (int token = begin + static_cast<int>(threadIdx.x); token < end; token += kThreads) {
    float value = x[token];
    if (penalised) {
      value = Penalised(spec, counts[token], value);
      x[token] = value;
    }
    if (value == value) first = Larger()(first, RankOf(value, token));
  }
  return first;
}

__global__ void __launch_bounds__(kThreads) ScanKernel(SampleArguments a, Scratch scratch) {
  const Part part = PartOf(a, scratch);
  const ops::SampleSpec spec = a.specs[part.sample];
  if (spec.kind == ops::SampleSpec::Kind::kSkip) return;
  const Reader raw = RawReader(a, part.sample);
  const bool treated = NeedsTreatment(a, spec);
  float* workspace = WorkspaceRow(a, part.sample);
  int finite = 1;
  float largest = kBanned;
  uint64_t first = 0;
  for (int group = part.begin + static_cast<int>(threadIdx.x); group < part.end;
       group += kThreads) {
    float x[4];
    raw.Group(group, x);
    for (int i = 0; i < 4; ++i) {
      const int token = 4 * group + i;
      if (token >= a.vocabulary) continue;
      if (!IsNumber(x[i])) finite = 0;
      largest = fmaxf(largest, x[i]);
      if (treated) workspace[token] = spec.only_listed ? kBanned : x[i];
    }
    if (!treated) first = FirstOf(x, group, a.vocabulary, first);
  }
  if (treated) first = TreatPart(a, spec, part, raw);
  first = Fold(first, Larger());
  largest = Fold(largest, Larger());
  finite = -Fold(-finite, Larger());  // the least
  if (threadIdx.x == 0) scratch.scans[blockIdx.x] = {first, largest, finite};
  if (!IsFiltered(a, spec)) return;
  const int64_t bins = static_cast<int64_t>(part.sample) * kBins;
  for (int bin = part.block * kThreads + static_cast<int>(threadIdx.x); bin < kBins;
       bin += scratch.blocks * kThreads) {
    scratch.bin_counts[bins + bin] = 0;
    scratch.bin_sums[bins + bin] = 0;
  }
  if (part.block == 0 && threadIdx.x == 0) scratch.num_listed[part.sample] = 0;
}

// Weights only where top-p is the sole filter; with top-k they matter only among what it keeps.
__device__ inline void CountPart(const Scratch& scratch, const Part& part, const ScaledRow& row,
                                 bool weighs) {
  __shared__ unsigned counts[kBins];
  __shared__ unsigned low[kBins];
  __shared__ unsigned high[kBins];
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) {
    counts[bin] = low[bin] = high[bin] = 0;
  }
  __syncthreads();
  // The last bin may hold most of the row: added up apart, so that threads do not queue for it.
  unsigned last_count = 0;
  uint64_t last_sum = 0;
  for (int group = part.begin + static_cast<int>(threadIdx.x); group < part.end;
       group += kThreads) {
    float y[4];
    row.Group(group, y);
    for (int i = 0; i < 4; ++i) {
      if (!(y[i] > kBanned)) continue;
      const int bin = BinOf(y[i]);
      const uint64_t weight = weighs ? WeightOf(y[i]) : 0;
      if (bin == kBins - 1) {
        ++last_count;
        last_sum += weight;
        continue;
      }
      atomicAdd(&counts[bin], 1u);
      if (weight != 0) AddWide(&low[bin], &high[bin], weight);
    }
  }
  last_count = Fold(last_count, Sum());
  last_sum = Fold(last_sum, Sum());
  const int64_t bins = static_cast<int64_t>(part.sample) * kBins;
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) {
    const bool last = bin == kBins - 1;
    const unsigned count = last ? last_count : counts[bin];
    if (count == 0) continue;
    const uint64_t sum = last ? last_sum : (static_cast<uint64_t>(high[bin]) << 32) + low[bin];
    atomicAdd(&scratch.bin_counts[bins + bin], count);
    if (sum != 0) {
      atomicAdd(&scratch.bin_sums[bins + bin], static_cast<unsigned long long>(sum));
    }
  }
}

__global__ void __launch_bounds__(kThreads, 4) CountKernel(SampleArguments a, Scratch scratch) {
  const Part part = PartOf(a, scratch);
  const ops::SampleSpec spec = a.specs[part.sample];
  if (!IsDrawn(spec)) return;
  const RowScan scan = ScanOf(scratch, part.sample);
  if (!CanDraw(scan)) return;
  const ScaledRow row = ScaledRowOf(a, spec, scan, part.sample);
  if (IsFiltered(a, spec)) {
    CountPart(scratch, part, row, !KeepsK(spec, a.vocabulary));
    return;
  }
  const DrawPart drawn = DrawFrom(
      row, part.begin, part.end, [](float, int) { return true; }, [](float, int) {});
  if (threadIdx.x == 0) scratch.draws[blockIdx.x] = drawn;
}

// Top-k decides by counts, top-p alone by weights. By all threads of a block.
__device__ inline Cut FindCut(const SampleArguments& a, const ops::SampleSpec& spec,
                              const unsigned* counts, const unsigned long long* sums) {
  constexpr int kEach = kBins / kThreads;
  __shared__ Cut found;
  const bool by_count = KeepsK(spec, a.vocabulary);
  const int begin = static_cast<int>(threadIdx.x) * kEach;
  uint64_t count = 0;
  uint64_t sum = 0;
  for (int bin = begin; bin < begin + kEach; ++bin) {
    count += counts[bin];
    sum += sums[bin];
  }
  const uint64_t total = Fold(sum, Sum());
  const uint64_t total_count = Fold(count, Sum());
  uint64_t before = SumBefore(sum);
  uint64_t count_before = SumBefore(count);
  uint64_t goal = by_count ? static_cast<uint64_t>(spec.top_k) : GoalOf(spec.top_p, total);
  const uint64_t most = by_count ? total_count : total;
  if (goal > most) goal = most;  // fewer are left than top-k would keep
  for (int bin = begin; bin < begin + kEach; ++bin) {
    const uint64_t reached = by_count ? count_before : before;
    const uint64_t more = by_count ? counts[bin] : sums[bin];
    if (reached < goal && goal <= reached + more) {
      const uint64_t listed = counts[bin] + (by_count && KeepsP(spec) ? count_before : uint64_t{0});
      found = {bin, static_cast<int>(count_before), static_cast<int>(listed), before, total};
    }
    before += sums[bin];
    count_before += counts[bin];
  }
  __syncthreads();
  return found;
}

__global__ void __launch_bounds__(kThreads, 4) NarrowKernel(SampleArguments a, Scratch scratch) {
  const Part part = PartOf(a, scratch);
  const ops::SampleSpec spec = a.specs[part.sample];
  if (!IsFiltered(a, spec)) return;
  const RowScan scan = ScanOf(scratch, part.sample);
  if (!CanDraw(scan)) return;
  const int64_t bins = static_cast<int64_t>(part.sample) * kBins;
  const Cut cut = FindCut(a, spec, scratch.bin_counts + bins, scratch.bin_sums + bins);
  if (part.block == 0 && threadIdx.x == 0) scratch.cuts[part.sample] = cut;
  if (cut.listed > kMaxListed) return;  // Finish does it all
  // Top-p after top-k needs all that top-k keeps in one place.
  const bool lists_all = KeepsK(spec, a.vocabulary) && KeepsP(spec);
  uint64_t* listed = scratch.listed + static_cast<int64_t>(part.sample) * kMaxListed;
  unsigned* num_listed = scratch.num_listed + part.sample;
  const DrawPart drawn = DrawFrom(
      ScaledRowOf(a, spec, scan, part.sample), part.begin, part.end,
      [&](float y, int) { return !lists_all && BinOf(y) < cut.bin; },
      [&](float y, int token) {
        const int bin = BinOf(y);
        if (bin == cut.bin || (lists_all && bin < cut.bin)) {
          listed[atomicAdd(num_listed, 1u)] = RankOf(y, token);
        }
      });
  if (threadIdx.x == 0) scratch.draws[blockIdx.x] = drawn;
}

}  // namespace polyreme::cuda::sampling
