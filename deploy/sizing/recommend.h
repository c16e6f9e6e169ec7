// "Which GPUs for which role?", answered from the arithmetic.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "deploy/sizing/launch_plan.h"

namespace polyreme::sizing {

// What a role asks of a launch.
struct Role {
  std::string_view name;
  std::string_view sentence;
  int32_t context = 0;    // tokens of a longest sequence
  int32_t sequences = 0;  // at once
  int32_t own = 0;        // tokens of each that no other has
  // Prompts that several sequences share, whose cache is held once each.
  int32_t shared_prompts = 0;
  int32_t shared = 0;            // tokens of such a prompt
  double tokens_per_second = 0;  // of each of them, at least, as expected
  int32_t prompt = 0;            // whose first token must come within prompt_seconds
  double prompt_seconds = 0;
  // Wanted most once the demands are met: a low cost, or much offline work for it.
  bool for_throughput = false;
  int32_t offline_input = 0;
  int32_t offline_output = 0;
};
// "ide", "api", "farm", "scan". InvalidArgument lists them.
absl::StatusOr<Role> FindRole(std::string_view name);

struct Recommendation {
  LaunchSettings settings;
  double cost = 0;  // per hour, or GPUs
  int64_t kv_tokens = 0;
  double each = 0;            // tokens per second of each sequence, expected
  double all = 0;             // of all of them
  double prompt_seconds = 0;  // expected
  double offline = 0;         // output tokens per second; 0 unless the role wants it
  std::string reason;
};

struct Recommendations {
  std::vector<Recommendation> launches;  // best first
  bool by_price = false;
  // Where there is none: what stood in the way of the closest one.
  std::string why_none;
};

// settings: the model and everything but GPU, layout and lengths. budget: per hour, if any GPU of
// the table has a price (then only those that have one are looked at); else the number of GPUs.
Recommendations Recommend(const LaunchSettings& settings, const GpuTable& table, const Role& role,
                          double budget, size_t most);

}  // namespace polyreme::sizing
