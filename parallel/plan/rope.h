// Rotary position embedding: which frequencies a model turns its queries and keys with.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/base/status.h"
#include "parallel/plan/config_reader.h"

namespace polyreme::plan {

// Half-split form. Frequencies: Su et al. 2021 and the scalings named by rope_type.
struct RopeSpec {
  enum class Type { kDefault, kLinear, kLlama3, kYarn };
  Type type = Type::kDefault;
  double theta = 10000.0;
  double factor = 1.0;            // all but kDefault
  double low_freq_factor = 1.0;   // kLlama3
  double high_freq_factor = 4.0;  // kLlama3
  double beta_fast = 32.0;        // kYarn
  double beta_slow = 1.0;         // kYarn
  double attention_factor =
      1.0;  // multiplies cos and sin; already resolved (kYarn's default, mscale)
  int64_t original_max_positions = 0;  // kLlama3, kYarn
  bool truncate = true;                // kYarn: whole dimensions at the ramp's ends
  friend bool operator==(const RopeSpec&, const RopeSpec&) = default;
};

struct RopeDefaults {
  double theta = 0;           // when no key gives it; 0: the key must be there
  int64_t max_positions = 0;  // the model's: what yarn falls back to
};

// From a config.json's top-level object: rope_parameters (Transformers 5), or rope_theta with
// rope_scaling (Transformers 4). `config` has PathOf() for messages. InvalidArgument names the key.
absl::StatusOr<RopeSpec> ParseRope(const ConfigReader& config, const RopeDefaults& defaults);

// Inverse frequencies [head_dim / 2], after scaling. cos and sin are multiplied by
// spec.attention_factor.
std::vector<double> InverseFrequencies(const RopeSpec& spec, int64_t head_dim);

// cos and sin of the positions [0, positions): [positions, head_dim], first head_dim/2 cosines,
// then as many sines, times attention_factor. Angles are float32 products of a float32 frequency
// and the position, as models were trained with.
std::vector<float> RopeTable(const RopeSpec& spec, int64_t head_dim, int64_t positions);

}  // namespace polyreme::plan
