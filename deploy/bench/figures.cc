#include "deploy/bench/figures.h"

#include <algorithm>
#include <charconv>
#include <string_view>

namespace polyreme::bench {
namespace {

constexpr size_t kMaxSeconds = 7 * 24 * 3600;

absl::StatusOr<double> ParseMilliseconds(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  const double scale = unit.empty() || unit == "ms" ? 1 : unit == "s" ? 1000 : 0;
  if (error != std::errc() || scale == 0 || !(value > 0) || value > 1e9) {
    return InvalidArgument("expected a time such as 450ms or 2s, got '{:.40}'", text);
  }
  return value * scale;
}

// One reason, whatever ids and ports it names.
std::string WithoutNumbers(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool is_digit = c >= '0' && c <= '9';
    if (!is_digit) {
      out += c;
    } else if (!out.ends_with('#')) {
      out += '#';
    }
  }
  return out;
}

}  // namespace

bool Slo::IsKeptBy(const RequestRecord& record) const {
  if (record.outcome != RequestRecord::Outcome::kDone) return false;
  // A delay that there is none of (one token has no time between tokens) keeps any limit.
  const auto within = [](double value, double limit) { return limit <= 0 || !(value > limit); };
  return within(record.ttft_ms(), ttft_ms) && within(record.tpot_ms(), tpot_ms) &&
         within(record.latency_ms(), e2el_ms);
}

absl::StatusOr<Slo> ParseSlo(const std::string& text) {
  Slo slo;
  std::string_view rest = text;
  while (!rest.empty()) {
    const std::string_view part = rest.substr(0, rest.find_first_of(", "));
    rest.remove_prefix(std::min(rest.size(), part.size() + 1));
    const size_t colon = part.find(':');
    const std::string_view name = part.substr(0, colon);
    double* const limit = name == "ttft"   ? &slo.ttft_ms
                          : name == "tpot" ? &slo.tpot_ms
                          : name == "e2el" ? &slo.e2el_ms
                                           : nullptr;
    if (limit == nullptr || colon == std::string_view::npos) {
      return InvalidArgument("expected ttft:, tpot: or e2el: with a time, got '{:.40}'", part);
    }
    ASSIGN_OR_RETURN(*limit, ParseMilliseconds(part.substr(colon + 1)));
  }
  if (!slo.any()) return InvalidArgument("expected ttft:450ms,tpot:40ms or the like, got nothing");
  return slo;
}

LoadFigures FiguresOf(const LoadResult& result, const Slo& slo) {
  LoadFigures figures;
  std::vector<double> ttft, tpot, itl, latency;
  for (const RequestRecord& record : result.records) {
    if (record.outcome == RequestRecord::Outcome::kNotSent) continue;
    ++figures.requests;
    if (record.outcome == RequestRecord::Outcome::kCancelled) {
      ++figures.cancelled;
      continue;
    }
    if (record.outcome == RequestRecord::Outcome::kFailed) {
      ++figures.failed;
      LoadFigures::Error& error = figures.errors[WithoutNumbers(record.error)];
      if (++error.count == 1) error.example = record.error;
      continue;
    }
    ++figures.completed;
    figures.good += slo.IsKeptBy(record) ? 1 : 0;
    figures.prompt_tokens += record.prompt_tokens;
    figures.output_tokens += record.output_tokens;
    figures.counted_by_server = figures.counted_by_server && record.has_usage;
    latency.push_back(record.latency_ms());
    if (record.first_ns > 0) ttft.push_back(record.ttft_ms());
    if (record.first_ns > 0 && record.output_tokens > 1) tpot.push_back(record.tpot_ms());
    for (const int64_t gap : record.gaps_ns) itl.push_back(static_cast<double>(gap) / 1e6);
  }
  figures.seconds = result.seconds;
  figures.ttft = Samples(std::move(ttft));
  figures.tpot = Samples(std::move(tpot));
  figures.itl = Samples(std::move(itl));
  figures.latency = Samples(std::move(latency));
  if (figures.seconds > 0) {
    const auto output = static_cast<double>(figures.output_tokens);
    figures.requests_per_second = figures.completed / figures.seconds;
    figures.output_per_second = output / figures.seconds;
    figures.total_per_second =
        (output + static_cast<double>(figures.prompt_tokens)) / figures.seconds;
  }
  return figures;
}

std::vector<double> TokensOverTime(const std::vector<RequestRecord>& records) {
  std::vector<double> seconds;
  const auto count = [&seconds](int64_t ns) {
    const auto second = static_cast<size_t>(ns / 1'000'000'000);
    if (second >= kMaxSeconds) return;
    if (second >= seconds.size()) seconds.resize(second + 1, 0.0);
    ++seconds[second];
  };
  for (const RequestRecord& record : records) {
    if (record.first_ns == 0) continue;
    int64_t at = record.first_ns;
    count(at);
    for (const int64_t gap : record.gaps_ns) count(at += gap);
  }
  return seconds;
}

}  // namespace polyreme::bench
