// What part of its roofline polyreme was measured to reach, where it was: tables of
// docs/benchmarks.
#pragma once

#include <cstdint>
#include <string_view>

namespace polyreme::sizing {

enum class Work : uint8_t { kDecode, kPrompt, kOffline };

// Of rooflines from rates measured in the same run.
struct MeasuredShare {
  std::string_view gpu;
  int32_t shards = 1;
  int32_t stages = 1;
  Work work = Work::kDecode;
  int64_t size = 0;  // sequences of a decode step; tokens of a prompt; output tokens, offline
  double share = 0;
};

struct MeasuredGpu {
  std::string_view family;  // Gpu::family
  std::string_view gpu;     // Gpu::name, of the figures and of its measured rates
  std::string_view date;
  std::string_view table;
  std::string_view model;
};

// Of the family, or null.
const MeasuredGpu* MeasuredFamily(std::string_view family);
// Where no GPU of a family was measured: what its prediction is taken from.
const MeasuredGpu& NearestMeasured();

// The share of the entry that is nearest in layout (shards, stages, then both alike), then in size.
MeasuredShare ShareOf(const MeasuredGpu& gpu, int32_t shards, int32_t stages, Work work,
                      int64_t size);

}  // namespace polyreme::sizing
