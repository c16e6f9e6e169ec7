#include "deploy/sizing/measured.h"

#include <cmath>

#include "parallel/base/status.h"

namespace polyreme::sizing {
namespace {

constexpr MeasuredGpu kGpus[] = {
    {"hopper", "h200", "2026-11-22", "docs/benchmarks/h200.md", "the 40B shape in bf16"},
};

constexpr MeasuredShare kShares[] = {
    {"h200", 1, 1, Work::kDecode, 1, 0.82},     {"h200", 1, 1, Work::kDecode, 16, 0.81},
    {"h200", 1, 1, Work::kDecode, 64, 0.81},    {"h200", 2, 1, Work::kDecode, 1, 0.66},
    {"h200", 2, 1, Work::kDecode, 16, 0.63},    {"h200", 2, 1, Work::kDecode, 64, 0.65},
    {"h200", 1, 2, Work::kDecode, 1, 0.83},     {"h200", 1, 2, Work::kDecode, 64, 0.80},
    {"h200", 1, 1, Work::kPrompt, 2048, 0.78},  {"h200", 1, 1, Work::kPrompt, 8192, 0.80},
    {"h200", 2, 1, Work::kPrompt, 2048, 0.70},  {"h200", 2, 1, Work::kPrompt, 8192, 0.71},
    {"h200", 1, 1, Work::kOffline, 1024, 0.76}, {"h200", 2, 1, Work::kOffline, 1024, 0.65},
};

// Shards cost most, and stages next: the fewer of them differ, the better.
double Distance(const MeasuredShare& share, int32_t shards, int32_t stages, int64_t size) {
  const bool sharded = shards > 1, staged = stages > 1;
  const bool like_shards = (share.shards > 1) == sharded;
  const bool like_stages = (share.stages > 1) == staged;
  const double sizes =
      std::abs(std::log2(static_cast<double>(share.size)) - std::log2(static_cast<double>(size)));
  return (like_shards ? 0 : 1e6) + (like_stages ? 0 : 1e3) + sizes;
}

}  // namespace

const MeasuredGpu* MeasuredFamily(std::string_view family) {
  for (const MeasuredGpu& gpu : kGpus) {
    if (gpu.family == family) return &gpu;
  }
  return nullptr;
}

const MeasuredGpu& NearestMeasured() {
  return kGpus[0];
}

MeasuredShare ShareOf(const MeasuredGpu& gpu, int32_t shards, int32_t stages, Work work,
                      int64_t size) {
  const MeasuredShare* best = nullptr;
  for (const MeasuredShare& share : kShares) {
    if (share.gpu != gpu.gpu || share.work != work) continue;
    if (best == nullptr ||
        Distance(share, shards, stages, size) < Distance(*best, shards, stages, size)) {
      best = &share;
    }
  }
  CHECK(best != nullptr, "nothing was measured of {}", gpu.gpu);
  return *best;
}

}  // namespace polyreme::sizing
