#include "worker/backend/cpu/cpu_sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "absl/types/span.h"
#include "parallel/base/limits.h"
#include "parallel/base/status.h"
#include "worker/backend/cpu/exact_math.h"
#include "worker/backend/cpu/gumbel.h"
#include "worker/backend/cpu/sample_filter.h"

namespace polyreme::backend {
namespace {

using ops::SampleBatch;
using ops::SampleOutput;
using ops::SampleSpec;

constexpr float kBanned = -std::numeric_limits<float>::infinity();
constexpr uint32_t kInPrompt = uint32_t{1} << 31;

// One row of raw logits, gathered from the shards' parts: [shards, S, V].
class RawRow {
 public:
  RawRow(const SampleBatch& batch, int64_t sample)
      : vocabulary_(batch.vocabulary),
        part_(batch.logits.shape[2]),
        stride_(batch.logits.shape[1] * part_),
        row_(batch.logits.As<float>() + sample * part_) {}

  float operator[](int64_t token) const { return row_[(token / part_) * stride_ + token % part_]; }
  void CopyTo(absl::Span<float> to) const {
    for (int64_t first = 0; first < vocabulary_; first += part_) {
      const int64_t count = std::min(part_, vocabulary_ - first);
      std::memcpy(to.data() + first, row_ + (first / part_) * stride_,
                  static_cast<size_t>(count) * sizeof(float));
    }
  }

 private:
  int64_t vocabulary_;
  int64_t part_;    // V
  int64_t stride_;  // from one shard's part of a row to the next
  const float* row_;
};

bool AllFinite(absl::Span<const float> x) {
  // x - x is 0 for numbers and NaN for the rest; NaN stays in the sum.
  float sum = 0;
  for (const float value : x) sum += value - value;
  return sum == 0;
}

bool HasPenalty(const SampleSpec& spec) {
  return spec.repetition_penalty != 1.0f || spec.presence_penalty != 0.0f ||
         spec.frequency_penalty != 0.0f;
}

void Penalise(const SampleSpec& spec, const uint32_t* counts, absl::Span<float> x) {
  for (size_t token = 0; token < x.size(); ++token) {
    if (counts[token] == 0) continue;
    float& logit = x[token];
    logit = logit > 0 ? logit / spec.repetition_penalty : logit * spec.repetition_penalty;
    const uint32_t in_output = counts[token] & ~kInPrompt;
    if (in_output == 0) continue;
    logit -= static_cast<float>(in_output) * spec.frequency_penalty;
    logit -= spec.presence_penalty;
  }
}

// Bias, bans and penalties, in place.
void Treat(const SampleBatch& batch, const SampleSpec& spec, const RawRow& raw,
           absl::Span<float> x) {
  if (spec.only_listed) {
    std::fill(x.begin(), x.end(), kBanned);
    for (int32_t i = spec.allowed_begin; i < spec.allowed_end; ++i) {
      const int32_t token = batch.allowed_tokens[i];
      x[static_cast<size_t>(token)] = raw[token];
    }
  }
  for (int32_t i = spec.bias_begin; i < spec.bias_end; ++i) {
    x[static_cast<size_t>(batch.bias_tokens[i])] += batch.bias_values[i];
  }
  if (HasPenalty(spec) && batch.token_counts != nullptr) {
    Penalise(spec, batch.token_counts + int64_t{spec.slot} * batch.vocabulary, x);
  }
}

// The largest of x + noise; at a tie the lower id.
int32_t LargestWithNoise(const SampleSpec& spec, absl::Span<const float> x) {
  const cpu::NoiseKey key{spec.seed, static_cast<uint32_t>(spec.choice),
                          static_cast<uint32_t>(spec.position)};
  const float least = spec.min_p > 0 ? static_cast<float>(cpu::ExactLog(spec.min_p)) : kBanned;
  double best = -std::numeric_limits<double>::infinity();
  size_t token = 0;
  for (size_t first = 0; first < x.size(); first += 4) {
    const absl::Span<const float> group = x.subspan(first, 4);
    const float largest = *std::max_element(group.begin(), group.end());
    // Most of a vocabulary cannot win with any noise: it costs one comparison.
    if (largest == kBanned || largest + cpu::kMaxGumbel <= best) continue;
    const cpu::PhiloxWords words = key.WordsOf(static_cast<int64_t>(first / 4));
    for (size_t i = 0; i < group.size(); ++i) {
      if (group[i] == kBanned || group[i] < least) continue;
      const double value = group[i] + cpu::GumbelOf(words[i]);
      if (value > best) {
        best = value;
        token = first + i;
      }
    }
  }
  return static_cast<int32_t>(token);
}

// nullopt: nothing may be drawn, or treatment has left the numbers.
std::optional<int32_t> Draw(const SampleSpec& spec, absl::Span<float> x) {
  const auto largest = std::max_element(x.begin(), x.end());
  const float max = *largest;
  if (!std::isfinite(max)) return std::nullopt;
  if (spec.temperature == 0) return static_cast<int32_t>(largest - x.begin());
  // Adding 0 turns -0 into 0, so that equal values have equal bits.
  for (float& value : x) value = (value - max) / spec.temperature + 0.0f;
  if (spec.top_k > 0) cpu::KeepTopK(x, spec.top_k);
  if (spec.top_p < 1) cpu::KeepTopP(x, spec.top_p);
  return LargestWithNoise(spec, x);
}

// Inserts into the `count` best so far, best first; at equal values the earlier token stays ahead.
void InsertTop(int32_t token, float logit, absl::Span<int32_t> tokens, absl::Span<float> logits) {
  if (!(logit > logits.back())) return;
  size_t place = logits.size() - 1;
  for (; place > 0 && logit > logits[place - 1]; --place) {
    tokens[place] = tokens[place - 1];
    logits[place] = logits[place - 1];
  }
  tokens[place] = token;
  logits[place] = logit;
}

// Log-probability and rank of out.token, and the most likely tokens. x: raw logits.
void Score(const SampleBatch& batch, int64_t sample, absl::Span<const float> x, SampleOutput& out) {
  const float max = *std::max_element(x.begin(), x.end());
  const float chosen = x[static_cast<size_t>(out.token)];
  double sum = 0;
  int32_t at_least = 0;
  for (const float value : x) {
    sum += cpu::ExactExp(static_cast<double>(value) - max);
    at_least += value >= chosen ? 1 : 0;
  }
  const double log_sum = max + cpu::ExactLog(sum);
  out.logprob = static_cast<float>(chosen - log_sum);
  out.rank = at_least;  // as vLLM: equals count as ahead
  const int32_t asked = std::min(batch.host_specs[sample].num_logprobs, batch.vocabulary);
  if (asked <= 0) return;
  const auto count = static_cast<size_t>(asked);
  const absl::Span<int32_t> tokens(batch.top_tokens + sample * limits::kMaxLogprobs, count);
  const absl::Span<float> logprobs(batch.top_logprobs + sample * limits::kMaxLogprobs, count);
  std::fill(logprobs.begin(), logprobs.end(), kBanned);
  for (size_t token = 0; token < x.size(); ++token) {
    InsertTop(static_cast<int32_t>(token), x[token], tokens, logprobs);
  }
  for (float& value : logprobs) value = static_cast<float>(value - log_sum);
}

void SampleRow(const SampleBatch& batch, int64_t sample) {
  const SampleSpec& spec = batch.host_specs[sample];
  const RawRow raw(batch, sample);
  const auto vocabulary = static_cast<size_t>(batch.vocabulary);
  const absl::Span<float> x(batch.workspace.As<float>() + sample * batch.vocabulary, vocabulary);
  SampleOutput& out = batch.outputs[sample];
  out = SampleOutput{};
  if (spec.kind == SampleSpec::Kind::kSkip) return;
  raw.CopyTo(x);
  out.finite = AllFinite(x) ? 1 : 0;
  if (out.finite == 0) return;
  const bool draws = spec.kind == SampleSpec::Kind::kDraw;
  out.token = spec.target;
  if (draws) {
    Treat(batch, spec, raw, x);
    const std::optional<int32_t> token = Draw(spec, x);
    out.token = token.value_or(0);
    out.finite = token.has_value() ? 1 : 0;
    if (out.finite == 0) return;
    if (HasPenalty(spec) && batch.token_counts != nullptr) {
      ++batch.token_counts[int64_t{spec.slot} * batch.vocabulary + out.token];
    }
    if (spec.num_logprobs < 0) return;
    raw.CopyTo(x);
  }
  Score(batch, sample, x, out);
}

}  // namespace

void SampleOnCpu(ThreadPool& pool, const ops::SampleBatch& batch) {
  pool.ParallelFor(batch.num_samples, [&](int64_t sample) { SampleRow(batch, sample); });
}

}  // namespace polyreme::backend
