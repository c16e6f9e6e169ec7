// What is asked: prompts with lengths, and for a trace the times.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "deploy/bench/openai_client.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

struct PromptEntry {
  Prompt prompt;
  std::string kind;      // of the built-in ones: completion, repair, algorithm, api, explanation
  std::string language;  // of the built-in ones
  int32_t prompt_tokens = 0;  // 0: unknown
  int32_t max_tokens = 0;
  double seconds = 0;  // of a trace: since its start
};

// The 250 prompts that belong to the program, 50 of each kind in turn, so that any beginning has
// all kinds evenly. Written for this project; deploy/bench/data/prompts.jsonl.
std::string_view BuiltInPrompts();

// Lines of {"prompt": text, "kind": ..., "language": ..., "max_tokens": ...}, all but the first
// optional. InvalidArgument names the line.
absl::StatusOr<std::vector<PromptEntry>> ReadPrompts(std::string_view lines, int32_t max_tokens);

// As `vllm bench serve --dataset-name random` draws: lengths uniform in [(1 - r) n, (1 + r) n],
// tokens uniform.
struct RandomOptions {
  int32_t num_prompts = 1000;
  int32_t input_len = 1024;
  int32_t output_len = 128;
  double range_ratio = 0;  // in [0, 1)
  int32_t prefix_len = 0;  // tokens that all prompts begin with, besides input_len
  int32_t vocabulary = 0;  // tokens are drawn from its upper nine tenths: special ones are low
  uint64_t seed = 0;
};
absl::StatusOr<std::vector<PromptEntry>> DrawRandom(const RandomOptions& options);

// Lines of a trace: {"timestamp": milliseconds} or {"time": seconds}, "input_length",
// "output_length", optionally "prompt". In any order; sorted by time, the first at 0; `speed` times
// as fast. Prompts that are not given are random. InvalidArgument names the line.
absl::StatusOr<std::vector<PromptEntry>> ReadTrace(std::string_view lines, double speed,
                                                   int32_t vocabulary, uint64_t seed);

// Seconds at which each of `count` requests is to be sent: gaps gamma-distributed with mean 1 /
// rate and shape `burstiness` (1: Poisson), or all equal if `burstiness` is infinite. An infinite
// rate gives zeros. The first is sent at once.
std::vector<double> ArrivalTimes(int32_t count, double rate, double burstiness, uint64_t seed);

}  // namespace polyreme::bench
