#include "deploy/bench/sweep.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

namespace polyreme::bench {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

struct Point {
  int32_t concurrency = 0;
  std::vector<PromptEntry> prompts;
  std::vector<LoadRound> rounds;
};
using Points = std::vector<Point>;

Points PointsOf(const SweepOptions& options) {
  Points points;
  for (size_t i = 0; i < options.concurrency.size(); ++i) {
    Point& point = points.emplace_back();
    point.concurrency = options.concurrency[i];
    point.prompts = options.prompts;
    if (options.num_prompts.empty()) continue;
    const auto wanted = static_cast<size_t>(options.num_prompts[i]);
    if (wanted < point.prompts.size()) point.prompts.resize(wanted);
  }
  return points;
}

// "250", or "10 to 130" where they differ.
std::string NumPrompts(const Points& points) {
  const auto [fewest, most] = std::minmax_element(
      points.begin(), points.end(),
      [](const Point& a, const Point& b) { return a.prompts.size() < b.prompts.size(); });
  if (fewest->prompts.size() == most->prompts.size())
    return fmt::format("{}", most->prompts.size());
  return fmt::format("{} to {}", fewest->prompts.size(), most->prompts.size());
}

std::string NameOfPoint(int32_t concurrency) {
  return fmt::format("concurrency {}", concurrency);
}

// Tokens of a sequence when it is half done, on average.
double ContextOf(const ReportPoint& point) {
  const double requests = MedianOf(point, "completed");
  if (!(requests > 0)) return kNone;
  return (MedianOf(point, "prompt_tokens") + MedianOf(point, "output_tokens") / 2) / requests;
}

double BestOf(const SweepRoofline& roofline, const ReportPoint& point, int32_t concurrency) {
  const double context = ContextOf(point);
  if (!roofline.known() || !std::isfinite(context)) return kNone;
  return roofline.tokens_per_second(concurrency, context);
}

TextTable TableOf(const Points& points, const std::vector<ReportPoint>& reported,
                  const SweepOptions& options) {
  TextTable table;
  table.columns = {{"batch", 0},      {"out tok/s", 1},   {"min", 1},         {"max", 1},
                   {"x of 1", 2},     {"roofline %", 0},  {"mean s", 2},      {"p50 s", 2},
                   {"p99 s", 2},      {"TTFT p50 ms", 1}, {"TTFT p99 ms", 1}, {"TPOT p50 ms", 2},
                   {"ITL p99 ms", 2}, {"KV %", 1},        {"memory GB", 2},   {"failed", 0}};
  double of_one = kNone;
  for (size_t i = 0; i < points.size(); ++i) {
    if (points[i].concurrency == 1) of_one = MedianOf(reported[i], "output_tok_per_s");
  }
  for (size_t i = 0; i < points.size(); ++i) {
    const ReportPoint& p = reported[i];
    const double rate = MedianOf(p, "output_tok_per_s");
    double failed = 0;
    for (const LoadRound& round : points[i].rounds) failed += round.figures.failed;
    table.rows.push_back({static_cast<double>(points[i].concurrency), rate,
                          LowestOf(p, "output_tok_per_s"), HighestOf(p, "output_tok_per_s"),
                          rate / of_one,
                          100 * rate / BestOf(options.roofline, p, points[i].concurrency),
                          MedianOf(p, "e2el_mean_ms") / 1e3, MedianOf(p, "e2el_p50_ms") / 1e3,
                          MedianOf(p, "e2el_p99_ms") / 1e3, MedianOf(p, "ttft_p50_ms"),
                          MedianOf(p, "ttft_p99_ms"), MedianOf(p, "tpot_p50_ms"),
                          MedianOf(p, "itl_p99_ms"), 100 * HighestOf(p, "kv_cache_usage_peak"),
                          HighestOf(p, "memory_peak_bytes") / 1e9, failed});
  }
  return table;
}

// One metric's median against the batch.
plot::Series AgainstBatch(const std::string& title, const Points& points,
                          const std::vector<ReportPoint>& reported, std::string_view metric,
                          double scale) {
  plot::Series series{.title = title, .x = {}, .y = {}};
  for (size_t i = 0; i < points.size(); ++i) {
    series.x.push_back(points[i].concurrency);
    series.y.push_back(MedianOf(reported[i], metric) * scale);
  }
  return series;
}

plot::Figure ThroughputFigure(const Points& points, const std::vector<ReportPoint>& reported,
                              const SweepRoofline& roofline) {
  plot::Figure figure{.name = "throughput",
                      .title = "Output tokens per second against batch",
                      .x_label = "requests under way",
                      .y_label = "tokens/s",
                      .log_x = true,
                      .series = {},
                      .categories = {},
                      .levels = {}};
  figure.series.push_back(AgainstBatch("measured", points, reported, "output_tok_per_s", 1));
  if (!roofline.known()) return figure;
  plot::Series best{.title = "at most", .x = {}, .y = {}};
  for (size_t i = 0; i < points.size(); ++i) {
    best.x.push_back(points[i].concurrency);
    best.y.push_back(BestOf(roofline, reported[i], points[i].concurrency));
  }
  figure.series.push_back(std::move(best));
  return figure;
}

plot::Figure LatencyFigure(const Points& points, const std::vector<ReportPoint>& reported) {
  plot::Figure figure{.name = "latency",
                      .title = "Latency against batch",
                      .x_label = "requests under way",
                      .y_label = "seconds",
                      .log_x = true,
                      .log_y = true,
                      .series = {},
                      .categories = {},
                      .levels = {}};
  figure.series = {AgainstBatch("whole answer, p50", points, reported, "e2el_p50_ms", 1e-3),
                   AgainstBatch("whole answer, p99", points, reported, "e2el_p99_ms", 1e-3),
                   AgainstBatch("first token, p50", points, reported, "ttft_p50_ms", 1e-3),
                   AgainstBatch("first token, p99", points, reported, "ttft_p99_ms", 1e-3)};
  return figure;
}

plot::Figure PercentileFigure(const Points& points) {
  plot::Figure figure{.name = "percentiles",
                      .title = "Latency percentiles",
                      .x_label = "percentile",
                      .y_label = "seconds",
                      .log_y = true,
                      .series = {},
                      .categories = {},
                      .levels = {}};
  for (const Point& point : points) {
    std::vector<double> all;
    for (const LoadRound& round : point.rounds) {
      const auto sorted = round.figures.latency.sorted();
      all.insert(all.end(), sorted.begin(), sorted.end());
    }
    const Samples samples(std::move(all));
    plot::Series series{.title = fmt::format("batch {}", point.concurrency),
                        .x = {},
                        .y = {},
                        .style = plot::Series::Style::kLines};
    for (int p = 0; p <= 100; ++p) {
      series.x.push_back(p);
      series.y.push_back(samples.Percentile(p) / 1e3);
    }
    figure.series.push_back(std::move(series));
  }
  return figure;
}

plot::Figure OverTimeFigure(const Points& points) {
  plot::Figure figure{.name = "over-time",
                      .title = "Tokens per second over time, last round",
                      .x_label = "seconds since the round's start",
                      .y_label = "tokens/s",
                      .series = {},
                      .categories = {},
                      .levels = {}};
  for (const Point& point : points) {
    plot::Series series{.title = fmt::format("batch {}", point.concurrency),
                        .x = {},
                        .y = TokensOverTime(point.rounds.back().records),
                        .style = plot::Series::Style::kLines};
    for (size_t s = 0; s < series.y.size(); ++s) series.x.push_back(static_cast<double>(s));
    figure.series.push_back(std::move(series));
  }
  return figure;
}

// Operations per second against operations per byte: the roof, and where each batch lies under it.
plot::Figure RooflineFigure(const Points& points, const std::vector<ReportPoint>& reported,
                            const SweepRoofline& roofline) {
  plot::Figure figure{.name = "roofline",
                      .title = "Decode steps under the roofline of this run",
                      .x_label = "operations per byte",
                      .y_label = "operations/s",
                      .log_x = true,
                      .log_y = true,
                      .series = {},
                      .categories = {},
                      .levels = {}};
  plot::Series roof{.title = "roof", .x = {}, .y = {}, .style = plot::Series::Style::kLines};
  const double ridge = roofline.operations_per_second / roofline.bytes_per_second;
  for (double x = 0.25; x <= std::max(256.0, 4 * ridge); x *= std::sqrt(2.0)) {
    roof.x.push_back(x);
    roof.y.push_back(std::min(roofline.bytes_per_second * x, roofline.operations_per_second));
  }
  plot::Series measured{
      .title = "measured, by batch", .x = {}, .y = {}, .style = plot::Series::Style::kLinesPoints};
  for (size_t i = 0; i < points.size(); ++i) {
    const int32_t batch = points[i].concurrency;
    const double context = ContextOf(reported[i]);
    if (!std::isfinite(context)) continue;
    const double operations = roofline.operations(batch, context);
    measured.x.push_back(operations / roofline.bytes(batch, context));
    measured.y.push_back(MedianOf(reported[i], "output_tok_per_s") / batch * operations);
  }
  figure.series = {std::move(roof), std::move(measured)};
  return figure;
}

void AddFigures(const Points& points, const SweepOptions& options, Report& report) {
  report.figures = {ThroughputFigure(points, report.points, options.roofline),
                    LatencyFigure(points, report.points), PercentileFigure(points),
                    OverTimeFigure(points)};
  if (options.roofline.known()) {
    report.figures.push_back(RooflineFigure(points, report.points, options.roofline));
  }
}

}  // namespace

absl::StatusOr<Report> RunSweep(const SweepOptions& options) {
  LoadBench bench(options.load);
  RETURN_IF_ERROR(bench.Prepare(options.prompts));
  const auto points = std::make_shared<Points>(PointsOf(options));
  const std::string num_prompts = NumPrompts(*points);
  Report report;
  report.kind = "sweep";
  for (int32_t r = 0; r < options.rounds && !report.EndedEarly(); ++r) {
    for (Point& point : *points) {
      ASSIGN_OR_RETURN(LoadRound round,
                       bench.Run(fmt::format("round {} of {}, {}", r + 1, options.rounds,
                                             NameOfPoint(point.concurrency)),
                                 point.prompts, {}, point.concurrency));
      report.interrupted = round.interrupted;
      report.failure = round.lost;
      point.rounds.push_back(std::move(round));
      if (report.EndedEarly()) break;
    }
  }
  std::erase_if(*points, [](const Point& point) { return point.rounds.empty(); });
  std::vector<const LoadRound*> all;
  for (const Point& point : *points) {
    report.points.push_back({NameOfPoint(point.concurrency), {}});
    for (const LoadRound& round : point.rounds) {
      report.points.back().rounds.push_back(MetricsOf(round));
      all.push_back(&round);
    }
  }
  report.title = fmt::format("{}: {} prompts at each concurrency, {} round(s), medians",
                             options.load.target.model, num_prompts, options.rounds);
  report.table = TableOf(*points, report.points, options);
  report.notes = NotesOf(all);
  for (const Point& point : *points) {
    if (static_cast<size_t>(point.concurrency) <= point.prompts.size()) continue;
    report.notes += fmt::format("{}: only {} prompts, never more than that were under way\n",
                                NameOfPoint(point.concurrency), point.prompts.size());
  }
  AddFigures(*points, options, report);
  report.each_request = [points](const std::function<void(const Json&)>& take) {
    for (const Point& point : *points) {
      for (size_t r = 0; r < point.rounds.size(); ++r) {
        for (const RequestRecord& record : point.rounds[r].records) {
          take(RequestJson(NameOfPoint(point.concurrency), static_cast<int32_t>(r + 1), record));
        }
      }
    }
  };
  return report;
}

}  // namespace polyreme::bench
