#include "deploy/bench/serve_bench.h"

#include <algorithm>
#include <cmath>
#include <memory>

namespace polyreme::bench {
namespace {

using Rounds = std::vector<LoadRound>;

std::string NameOfLoad(const ServeBenchOptions& options) {
  std::string name =
      options.is_trace ? "trace"
      : std::isinf(options.request_rate)
          ? "all at once"
          : fmt::format("rate {}, burstiness {}", options.request_rate, options.burstiness);
  if (options.max_concurrency > 0) {
    name += fmt::format(", at most {} under way", options.max_concurrency);
  }
  return name;
}

// Times of sending, or none where requests are sent whenever there is room: without a rate a bound
// on concurrency makes a closed loop.
std::vector<double> TimesOf(const ServeBenchOptions& options, uint64_t seed) {
  if (options.is_trace) {
    std::vector<double> times;
    for (const PromptEntry& entry : options.prompts) times.push_back(entry.seconds);
    return times;
  }
  if (std::isinf(options.request_rate) && options.max_concurrency > 0) return {};
  return ArrivalTimes(static_cast<int32_t>(options.prompts.size()), options.request_rate,
                      options.burstiness, seed);
}

const Samples& SamplesOf(const LoadFigures& figures, const std::string& metric) {
  if (metric == "ttft") return figures.ttft;
  if (metric == "tpot") return figures.tpot;
  if (metric == "itl") return figures.itl;
  return figures.latency;
}

std::string_view LongName(const std::string& metric) {
  if (metric == "ttft") return "time to first token";
  if (metric == "tpot") return "time per output token";
  if (metric == "itl") return "between chunks";
  return "whole answer";
}

// A row: the median over rounds, the lowest and the highest.
template <class Value>
void AddRow(TextTable& table, const std::string& name, const Rounds& rounds, Value value) {
  std::vector<double> values;
  for (const LoadRound& round : rounds) {
    if (const double v = value(round.figures); std::isfinite(v)) values.push_back(v);
  }
  const Samples samples(std::move(values));
  table.rows.push_back({name, samples.median(), samples.min(), samples.max()});
}

TextTable TableOf(const ServeBenchOptions& options, const Rounds& rounds) {
  TextTable table;
  table.columns = {{"", 0}, {"median", 2}, {"lowest", 2}, {"highest", 2}};
  const auto add = [&](const std::string& name, auto value) { AddRow(table, name, rounds, value); };
  add("completed", [](const LoadFigures& f) { return double(f.completed); });
  add("failed", [](const LoadFigures& f) { return double(f.failed); });
  add("duration s", [](const LoadFigures& f) { return f.seconds; });
  add("prompt tokens", [](const LoadFigures& f) { return double(f.prompt_tokens); });
  add("output tokens", [](const LoadFigures& f) { return double(f.output_tokens); });
  add("requests/s", [](const LoadFigures& f) { return f.requests_per_second; });
  add("output tok/s", [](const LoadFigures& f) { return f.output_per_second; });
  add("total tok/s", [](const LoadFigures& f) { return f.total_per_second; });
  if (options.load.slo.any()) {
    add("goodput requests/s", [](const LoadFigures& f) { return f.goodput(); });
    add("good %", [](const LoadFigures& f) { return 100 * f.good_share(); });
  }
  for (const std::string& metric : options.percentile_metrics) {
    const auto samples = [metric](const LoadFigures& f) -> const Samples& {
      return SamplesOf(f, metric);
    };
    const std::string name = fmt::format("{}, ", LongName(metric));
    add(name + "mean ms", [=](const LoadFigures& f) { return samples(f).mean(); });
    add(name + "median ms", [=](const LoadFigures& f) { return samples(f).median(); });
    for (const double p : options.percentiles) {
      add(fmt::format("{}p{:g} ms", name, p),
          [=](const LoadFigures& f) { return samples(f).Percentile(p); });
    }
  }
  return table;
}

plot::Figure FigureNamed(const char* name, const char* title, const char* x, const char* y) {
  return {.name = name,
          .title = title,
          .x_label = x,
          .y_label = y,
          .series = {},
          .categories = {},
          .levels = {}};
}

std::vector<plot::Figure> FiguresOf(const Rounds& rounds) {
  plot::Figure percentiles =
      FigureNamed("percentiles", "Latency percentiles, last round", "percentile", "milliseconds");
  percentiles.log_y = true;
  for (const std::string metric : {"ttft", "tpot", "itl", "e2el"}) {
    const Samples& samples = SamplesOf(rounds.back().figures, metric);
    if (samples.count() == 0) continue;
    plot::Series series{.title = std::string(LongName(metric)),
                        .x = {},
                        .y = {},
                        .style = plot::Series::Style::kLines};
    for (int p = 0; p <= 100; ++p) {
      series.x.push_back(p);
      series.y.push_back(samples.Percentile(p));
    }
    percentiles.series.push_back(std::move(series));
  }
  plot::Figure over_time = FigureNamed("over-time", "Tokens per second over time",
                                       "seconds since the round's start", "tokens/s");
  for (size_t r = 0; r < rounds.size(); ++r) {
    plot::Series series{.title = fmt::format("round {}", r + 1),
                        .x = {},
                        .y = TokensOverTime(rounds[r].records),
                        .style = plot::Series::Style::kLines};
    for (size_t s = 0; s < series.y.size(); ++s) series.x.push_back(static_cast<double>(s));
    over_time.series.push_back(std::move(series));
  }
  if (percentiles.series.empty()) return {std::move(over_time)};
  return {std::move(percentiles), std::move(over_time)};
}

}  // namespace

absl::StatusOr<Report> RunServeBench(const ServeBenchOptions& options) {
  LoadBench bench(options.load);
  RETURN_IF_ERROR(bench.Prepare(options.prompts));
  const auto rounds = std::make_shared<Rounds>();
  const std::string name = NameOfLoad(options);
  Report report;
  report.kind = "serve";
  report.points.push_back({name, {}});
  for (int32_t r = 0; r < options.rounds && !report.EndedEarly(); ++r) {
    ASSIGN_OR_RETURN(
        LoadRound round,
        bench.Run(fmt::format("round {} of {}, {}", r + 1, options.rounds, name), options.prompts,
                  TimesOf(options, options.seed + static_cast<uint64_t>(r)),
                  options.max_concurrency));
    report.interrupted = round.interrupted;
    report.failure = round.lost;
    report.points[0].rounds.push_back(MetricsOf(round));
    rounds->push_back(std::move(round));
  }
  report.title = fmt::format("{}: {} requests, {}, {} round(s)", options.load.target.model,
                             options.prompts.size(), name, options.rounds);
  report.table = TableOf(options, *rounds);
  std::vector<const LoadRound*> all;
  for (const LoadRound& round : *rounds) all.push_back(&round);
  report.notes = NotesOf(all);
  report.figures = FiguresOf(*rounds);
  report.each_request = [rounds, name](const std::function<void(const Json&)>& take) {
    for (size_t r = 0; r < rounds->size(); ++r) {
      for (const RequestRecord& record : (*rounds)[r].records) {
        take(RequestJson(name, static_cast<int32_t>(r + 1), record));
      }
    }
  };
  return report;
}

}  // namespace polyreme::bench
