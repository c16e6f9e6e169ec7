#include "deploy/bench/samples.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace polyreme::bench {

double Percentile(std::span<const double> sorted, double p) {
  if (sorted.empty()) return std::numeric_limits<double>::quiet_NaN();
  const double rank = std::clamp(p, 0.0, 100.0) / 100 * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  const double part = rank - static_cast<double>(below);
  return sorted[below] + part * (sorted[above] - sorted[below]);
}

Samples::Samples(std::vector<double> values) : sorted_(std::move(values)) {
  if (sorted_.empty()) return;
  std::sort(sorted_.begin(), sorted_.end());
  const auto count = static_cast<double>(sorted_.size());
  mean_ = 0;
  for (const double value : sorted_) mean_ += value / count;
  double squares = 0;
  for (const double value : sorted_) squares += (value - mean_) * (value - mean_) / count;
  deviation_ = std::sqrt(squares);
}

}  // namespace polyreme::bench
