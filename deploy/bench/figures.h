// The figures of one load, from its records. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "deploy/bench/load.h"
#include "deploy/bench/samples.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

// Limits in milliseconds that a request keeps or not; absent ones are infinite.
struct Slo {
  double ttft_ms = 0;  // 0: none, each
  double tpot_ms = 0;
  double e2el_ms = 0;
  bool any() const { return ttft_ms > 0 || tpot_ms > 0 || e2el_ms > 0; }
  bool IsKeptBy(const RequestRecord& record) const;
};
// "ttft:450ms,tpot:40ms,e2el:2s"; without a unit milliseconds, as vLLM's --goodput has them.
absl::StatusOr<Slo> ParseSlo(const std::string& text);

struct LoadFigures {
  int32_t requests = 0;  // sent
  int32_t completed = 0;
  int32_t failed = 0;
  int32_t cancelled = 0;  // by the user's interrupt
  double seconds = 0;
  int64_t prompt_tokens = 0;  // of completed ones
  int64_t output_tokens = 0;
  bool counted_by_server = true;  // else output tokens are chunks with text
  double requests_per_second = 0;
  double output_per_second = 0;  // tokens
  double total_per_second = 0;
  // Milliseconds. Latency and time to first token count from the intended time.
  Samples ttft, tpot, itl, latency;
  int32_t good = 0;  // completed within the SLO
  struct Error {
    std::string example;
    int32_t count = 0;
  };
  std::map<std::string, Error> errors;  // by what they have in common

  double goodput() const { return seconds > 0 ? good / seconds : 0; }  // requests per second
  double good_share() const { return requests > 0 ? static_cast<double>(good) / requests : 0; }
};
LoadFigures FiguresOf(const LoadResult& result, const Slo& slo);

// Tokens (chunks with text) that came in each second of the load.
std::vector<double> TokensOverTime(const std::vector<RequestRecord>& records);

}  // namespace polyreme::bench
