#include "deploy/bench/bench_score.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <utility>
#include <vector>

#include "deploy/bench/step_driver.h"
#include "parallel/base/clock.h"
#include "parallel/base/json.h"

namespace polyreme::bench {
namespace {

absl::StatusOr<std::vector<TokenId>> ParseLine(const std::string& line,
                                               const plan::ModelSpec& spec) {
  ASSIGN_OR_RETURN(const Json json, Json::Parse(line));
  const Json* const tokens = json.Find("tokens");
  if (tokens == nullptr || !tokens->is_array()) {
    return InvalidArgument("expected an object with an array 'tokens'");
  }
  std::vector<TokenId> ids;
  for (const Json& token : tokens->as_array()) {
    if (!token.is_int() || token.as_int() < 0 || token.as_int() >= spec.vocabulary) {
      return InvalidArgument("tokens: expected integers below {}, got {:.40}", spec.vocabulary,
                             token.Dump());
    }
    ids.push_back(static_cast<TokenId>(token.as_int()));
  }
  if (ids.empty() || std::ssize(ids) >= spec.max_positions) {
    return InvalidArgument("tokens: expected 1 to {}, got {}", spec.max_positions - 1, ids.size());
  }
  return ids;
}

absl::StatusOr<std::vector<std::vector<TokenId>>> ReadTexts(const std::string& path,
                                                            const plan::ModelSpec& spec) {
  std::ifstream file(path);
  if (!file) return NotFound("cannot read {}", path);
  std::vector<std::vector<TokenId>> texts;
  for (std::string line; std::getline(file, line);) {
    absl::StatusOr<std::vector<TokenId>> ids = ParseLine(line, spec);
    if (!ids.ok()) {
      return Annotate(ids.status(), fmt::format("{}:{}", path, texts.size() + 1));
    }
    texts.push_back(*std::move(ids));
  }
  if (texts.empty()) return InvalidArgument("{} has no line", path);
  return texts;
}

std::string LineOf(const std::vector<step::SampleResult>& samples) {
  std::vector<float> logprobs;
  for (size_t i = 0; i + 1 < samples.size(); ++i) logprobs.push_back(samples[i].logprob);
  std::vector<std::string> top;
  for (const step::TokenLogprob& entry : samples.back().top) {
    top.push_back(fmt::format("[{},{}]", entry.token, entry.logprob));
  }
  return fmt::format("{{\"logprobs\":[{}],\"top\":[{}]}}\n", fmt::join(logprobs, ","),
                     fmt::join(top, ","));
}

step::StepLimits LimitsFor(const BenchScoreOptions& options, const plan::ModelSpec& spec,
                           int32_t longest) {
  step::StepLimits limits;
  limits.num_slots = 1;
  limits.tokens_per_block = kTokensPerBlock;
  limits.num_blocks = longest / kTokensPerBlock + 1;
  limits.max_step_tokens = std::min(options.cluster.step_tokens(), longest);
  limits.max_step_samples = limits.max_step_tokens;
  limits.max_model_len = longest + 1;
  limits.vocabulary = static_cast<int32_t>(spec.vocabulary);
  limits.max_steps_in_flight = options.cluster.layout.stages + 1;
  return limits;
}

}  // namespace

absl::Status RunBenchScore(const BenchScoreOptions& options, std::string* text) {
  ASSIGN_OR_RETURN(const plan::ModelSpec spec, plan::ReadModelSpec(options.cluster.model));
  ASSIGN_OR_RETURN(const auto texts, ReadTexts(options.input, spec));
  size_t longest = 0;
  for (const std::vector<TokenId>& ids : texts) longest = std::max(longest, ids.size());
  const step::StepLimits limits = LimitsFor(options, spec, static_cast<int32_t>(longest));
  ASSIGN_OR_RETURN(const auto ranks, StartRanks(options.cluster, limits));
  StepDriver driver(*ranks, limits);
  std::ofstream out(options.output);
  int64_t num_tokens = 0;
  const absl::Time start = MonotonicNow();
  for (const std::vector<TokenId>& ids : texts) {
    driver.Open(1, static_cast<int32_t>(ids.size()), [&ids](int32_t) { return ids; },
                {.temperature = 0, .num_logprobs = limits::kMaxLogprobs});
    ASSIGN_OR_RETURN(const std::vector<step::SampleResult> samples, driver.Score(ids));
    out << LineOf(samples);
    num_tokens += std::ssize(ids);
  }
  const double seconds = SecondsSince(start);
  out.close();
  if (!out) return FailedPrecondition("cannot write {}", options.output);
  *text =
      fmt::format("scored {} texts of {} tokens in {:.1f} s\n", texts.size(), num_tokens, seconds);
  return absl::OkStatus();
}

}  // namespace polyreme::bench
