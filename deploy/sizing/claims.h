// Published figures beside the arithmetic: for each whether it is possible, and why not.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "deploy/sizing/gpus.h"
#include "parallel/base/status.h"
#include "parallel/plan/model_spec.h"

namespace polyreme::sizing {

struct Claim {
  enum class Kind : uint8_t {
    kMemory,          // GiB that a run takes
    kCache,           // GiB of the cache alone
    kDecode,          // tok/s of all sequences
    kFirstToken,      // seconds of a prompt of `context` tokens
    kLatency,         // seconds until `output` tokens of each sequence are there
    kRequestRate,     // requests of `output` tokens per second, at `rate` tok/s
    kCacheGrowth,     // the cache grows with this power of the length
    kDecodeRatio,     // tok/s over those on the GPU `against`
    kSecondsPerToken  // of a model that lies in the host's memory as far as the GPU has no room
  };
  std::string says;  // as published, in short
  Kind kind = Kind::kMemory;
  double value = 0;
  std::string gpu;
  DType dtype = DType::kBF16;
  double bits_per_weight = 16;  // of the layers' matrices
  int64_t batch = 1;
  int64_t context = 1;  // tokens of each sequence, on average
  int64_t output = 0;
  double rate = 0;
  std::string against = {};  // of kDecodeRatio: another GPU
};

// {"claims": [{"says": "...", "kind": "decode_tok_s", "value": 148, "gpu": "a100-80g-pcie",
// "batch": 1, "context": 2304}, ...]}. InvalidArgument names the entry and the key.
absl::StatusOr<std::vector<Claim>> ParseClaims(std::string_view json, std::string_view where);

struct Judgement {
  bool possible = true;
  double bound = 0;  // the least or the most that arithmetic allows, in the claim's unit
  std::string why;
};
// Against what the GPU's maker says of it: no run is faster than that.
absl::StatusOr<Judgement> JudgeClaim(const Claim& claim, const plan::ModelSpec& spec,
                                     const GpuTable& table);
// A Markdown table.
absl::StatusOr<std::string> ClaimsText(const std::vector<Claim>& claims,
                                       const plan::ModelSpec& spec, const GpuTable& table);

}  // namespace polyreme::sizing
