// Statistics of measured values. Pure.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace polyreme::bench {

// The p-th percentile, 0 to 100, of values in ascending order: linear between the two nearest
// ranks, as numpy.percentile and so `vllm bench` have it. NaN of none.
double Percentile(std::span<const double> sorted, double p);

// Values and what is said of them. Not thread-safe.
class Samples {
 public:
  Samples() = default;
  explicit Samples(std::vector<double> values);

  int64_t count() const { return static_cast<int64_t>(sorted_.size()); }
  // NaN of none, each.
  double mean() const { return mean_; }
  double deviation() const { return deviation_; }  // of the population, as numpy.std
  double Percentile(double p) const { return bench::Percentile(sorted_, p); }
  double min() const { return Percentile(0); }
  double median() const { return Percentile(50); }
  double max() const { return Percentile(100); }
  std::span<const double> sorted() const { return sorted_; }

 private:
  std::vector<double> sorted_;
  double mean_ = std::numeric_limits<double>::quiet_NaN();
  double deviation_ = std::numeric_limits<double>::quiet_NaN();
};

}  // namespace polyreme::bench
