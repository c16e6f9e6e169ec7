#include "deploy/bench/load_bench.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "deploy/bench/progress.h"

namespace polyreme::bench {
namespace {

// Above this share of a core the client may be what is measured.
constexpr double kBusyShare = 0.8;
constexpr double kLagMs = 20;
constexpr absl::Duration kProbePatience = absl::Seconds(5);

std::vector<double> ValuesOf(const ReportPoint& point, std::string_view metric) {
  std::vector<double> values;
  for (const Metrics& round : point.rounds) {
    for (const auto& [name, value] : round) {
      if (name == metric && std::isfinite(value)) values.push_back(value);
    }
  }
  return values;
}

Json NumberOrNull(double value) {
  return std::isfinite(value) ? Json(value) : Json();
}

}  // namespace

LoadBench::LoadBench(const LoadBenchOptions& options)
    : options_(options), watch_(options.target, options.memory) {}

LoadOptions LoadBench::LoadOptionsOf(int32_t concurrency) const {
  LoadOptions load;
  load.url = options_.target.url;
  load.path = options_.target.path();
  load.headers = options_.target.headers();
  load.concurrency = concurrency;
  load.num_threads = options_.num_threads;
  load.silence_deadline = options_.silence_deadline;
  return load;
}

absl::StatusOr<std::vector<RequestSpec>> LoadBench::SpecsOf(
    const std::vector<PromptEntry>& prompts, const std::vector<double>& times) const {
  std::vector<RequestSpec> specs;
  for (size_t i = 0; i < prompts.size(); ++i) {
    RequestSpec spec;
    if (!times.empty()) spec.intended_ns = static_cast<int64_t>(times[i] * 1e9);
    spec.prompt = static_cast<int32_t>(i);
    spec.prompt_tokens = prompts[i].prompt_tokens;
    ASSIGN_OR_RETURN(spec.body,
                     GenerationBody(options_.target, prompts[i].prompt, prompts[i].max_tokens));
    specs.push_back(std::move(spec));
  }
  return specs;
}

absl::Status LoadBench::Prepare(const std::vector<PromptEntry>& prompts) {
  if (prompts.empty()) return InvalidArgument("no prompts");
  for (const PromptEntry& entry : prompts) {
    if (options_.max_model_len <= 0 ||
        entry.prompt_tokens + entry.max_tokens <= options_.max_model_len) {
      continue;
    }
    return InvalidArgument(
        "a prompt{} and {} tokens to draw are longer than the context of {} at {}",
        entry.prompt_tokens > 0 ? fmt::format(" of {} tokens", entry.prompt_tokens) : "",
        entry.max_tokens, options_.max_model_len, options_.target.url.authority());
  }
  const auto count = static_cast<size_t>(std::max(options_.num_warmups, 1));
  std::vector<PromptEntry> first(
      prompts.begin(), prompts.begin() + static_cast<ptrdiff_t>(std::min(count, prompts.size())));
  ASSIGN_OR_RETURN(const LoadRound round, Run("warming up", first, {}, 8));
  if (round.interrupted) return Cancelled("interrupted before anything was measured");
  for (const RequestRecord& record : round.records) {
    if (record.outcome == RequestRecord::Outcome::kDone) continue;
    return Unavailable("a first request to {} failed: {}", options_.target.url.authority(),
                       record.error);
  }
  return absl::OkStatus();
}

absl::Status LoadBench::WhyLost(const std::string& title, const LoadResult& result) const {
  const auto last = std::max_element(
      result.records.begin(), result.records.end(),
      [](const RequestRecord& a, const RequestRecord& b) { return a.end_ns < b.end_ns; });
  const bool ended_in_failure =
      last != result.records.end() && last->outcome == RequestRecord::Outcome::kFailed;
  if (result.interrupted || !ended_in_failure) return absl::OkStatus();
  const absl::Status there =
      AskServer(options_.target, options_.target.model, kProbePatience).status();
  if (!absl::IsUnavailable(there)) return absl::OkStatus();
  return Unavailable("the server died in {}: {}; what was measured before is kept", title,
                     Message(there));
}

absl::StatusOr<LoadRound> LoadBench::Run(const std::string& title,
                                         const std::vector<PromptEntry>& prompts,
                                         const std::vector<double>& times, int32_t concurrency) {
  ASSIGN_OR_RETURN(std::vector<RequestSpec> specs, SpecsOf(prompts, times));
  watch_.TakePeaks();
  ProgressLine line;
  const auto show = [&](const LoadProgress& p) {
    const double rate = p.seconds > 0 ? static_cast<double>(p.chunks) / p.seconds : 0;
    const auto ended = static_cast<double>(p.done + p.failed);
    const double left = ended > 0 ? p.seconds * (static_cast<double>(p.total) - ended) / ended : 0;
    line.Show(fmt::format("{}: {} of {} done, {} under way, {} failed, {:.1f} tok/s, {:.0f} s{}",
                          title, p.done, p.total, p.sent - p.done - p.failed, p.failed, rate,
                          p.seconds, ended > 0 ? fmt::format(", {:.0f} s left", left) : ""));
  };
  ASSIGN_OR_RETURN(LoadResult result, RunLoad(LoadOptionsOf(concurrency), std::move(specs), show));
  LoadRound round;
  round.figures = FiguresOf(result, options_.slo);
  round.client = result.client;
  round.peaks = watch_.TakePeaks();
  round.interrupted = result.interrupted;
  round.lost = WhyLost(title, result);
  round.records = std::move(result.records);
  return round;
}

Metrics MetricsOf(const LoadRound& round) {
  const LoadFigures& f = round.figures;
  Metrics metrics = {{"requests", f.requests},
                     {"completed", f.completed},
                     {"failed", f.failed},
                     {"cancelled", f.cancelled},
                     {"seconds", f.seconds},
                     {"prompt_tokens", static_cast<double>(f.prompt_tokens)},
                     {"output_tokens", static_cast<double>(f.output_tokens)},
                     {"request_per_s", f.requests_per_second},
                     {"output_tok_per_s", f.output_per_second},
                     {"total_tok_per_s", f.total_per_second},
                     {"good_request_per_s", f.goodput()},
                     {"good_share", f.good_share()}};
  const auto add = [&metrics](const std::string& name, const Samples& samples) {
    metrics.emplace_back(name + "_mean_ms", samples.mean());
    metrics.emplace_back(name + "_std_ms", samples.deviation());
    for (const int p : {50, 90, 95, 99}) {
      metrics.emplace_back(fmt::format("{}_p{}_ms", name, p), samples.Percentile(p));
    }
    metrics.emplace_back(name + "_max_ms", samples.max());
  };
  add("ttft", f.ttft);
  add("tpot", f.tpot);
  add("itl", f.itl);
  add("e2el", f.latency);
  metrics.emplace_back("kv_cache_usage_peak", round.peaks.cache_usage);
  metrics.emplace_back("memory_peak_bytes", round.peaks.memory_bytes);
  metrics.emplace_back("client_cores", round.client.share());
  metrics.emplace_back("client_lag_p99_ms", round.client.lag_p99_ms);
  metrics.emplace_back("client_lag_max_ms", round.client.lag_max_ms);
  metrics.emplace_back("send_late_p99_ms", round.client.late_p99_ms);
  metrics.emplace_back("send_late_max_ms", round.client.late_max_ms);
  return metrics;
}

Json RequestJson(const std::string& point, int32_t round, const RequestRecord& record) {
  Json gaps = Json::MakeArray();
  for (const int64_t gap : record.gaps_ns) gaps.Append(static_cast<double>(gap) / 1e6);
  const auto seconds = [](int64_t ns) { return static_cast<double>(ns) / 1e9; };
  return Json::MakeObject({{"point", point},
                           {"round", round},
                           {"index", record.index},
                           {"prompt", record.prompt},
                           {"outcome", NameOf(record.outcome)},
                           {"intended_s", seconds(record.intended_ns)},
                           {"sent_s", seconds(record.sent_ns)},
                           {"end_s", seconds(record.end_ns)},
                           {"ttft_ms", NumberOrNull(record.ttft_ms())},
                           {"tpot_ms", NumberOrNull(record.tpot_ms())},
                           {"e2el_ms", NumberOrNull(record.latency_ms())},
                           {"prompt_tokens", record.prompt_tokens},
                           {"output_tokens", record.output_tokens},
                           {"counted_by_server", record.has_usage},
                           {"chunks", record.num_chunks},
                           {"finish_reason", record.finish_reason},
                           {"error", record.error},
                           {"itl_ms", std::move(gaps)}});
}

double MedianOf(const ReportPoint& point, std::string_view metric) {
  return Samples(ValuesOf(point, metric)).median();
}
double LowestOf(const ReportPoint& point, std::string_view metric) {
  return Samples(ValuesOf(point, metric)).min();
}
double HighestOf(const ReportPoint& point, std::string_view metric) {
  return Samples(ValuesOf(point, metric)).max();
}

std::string NotesOf(const std::vector<const LoadRound*>& rounds) {
  std::map<std::string, LoadFigures::Error> errors;
  bool counted = true;
  int32_t cancelled = 0;
  ClientCost worst;
  double busiest = 0;
  for (const LoadRound* round : rounds) {
    counted = counted && round->figures.counted_by_server;
    cancelled += round->figures.cancelled;
    busiest = std::max(busiest, round->client.share());
    worst.num_threads = std::max(worst.num_threads, round->client.num_threads);
    worst.lag_p99_ms = std::max(worst.lag_p99_ms, round->client.lag_p99_ms);
    worst.lag_max_ms = std::max(worst.lag_max_ms, round->client.lag_max_ms);
    worst.late_p99_ms = std::max(worst.late_p99_ms, round->client.late_p99_ms);
    for (const auto& [name, error] : round->figures.errors) {
      errors[name].example = error.example;
      errors[name].count += error.count;
    }
  }
  std::string notes = fmt::format(
      "the client itself, at most: {:.2f} cores on {} thread(s), event loop late by {:.2f} ms at "
      "p99 and {:.1f} ms, requests sent late by {:.2f} ms at p99{}\n",
      busiest, worst.num_threads, worst.lag_p99_ms, worst.lag_max_ms, worst.late_p99_ms,
      busiest > kBusyShare * worst.num_threads
          ? ": it may be the client that was measured (--client-threads)"
      : worst.lag_p99_ms > kLagMs
          ? ": this machine was too busy for the client, delays are longer by that"
          : "");
  if (!counted) notes += "output tokens are chunks with text: this server does not count them\n";
  if (cancelled > 0) notes += fmt::format("{} requests were cut by the interrupt\n", cancelled);
  for (const auto& [name, error] : errors) {
    notes += fmt::format("failed, {} times: {}\n", error.count, error.example);
  }
  return notes;
}

}  // namespace polyreme::bench
