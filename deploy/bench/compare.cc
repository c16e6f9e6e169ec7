#include "deploy/bench/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

#include "deploy/bench/samples.h"
#include "parallel/base/file.h"

namespace polyreme::bench {
namespace {

constexpr int64_t kMaxResultBytes = int64_t{64} << 20;

// Figures that are shown where both have them; the rest is in result.json.
constexpr std::string_view kShown[] = {"output_tok_per_s",    "total_tok_per_s",   "request_per_s",
                                       "good_share",          "e2el_mean_ms",      "e2el_p50_ms",
                                       "e2el_p99_ms",         "ttft_p50_ms",       "ttft_p99_ms",
                                       "tpot_p50_ms",         "tpot_p99_ms",       "itl_p99_ms",
                                       "kv_cache_usage_peak", "memory_peak_bytes", "failed"};

bool IsShown(const std::string& kind, std::string_view metric) {
  if (kind != "sweep" && kind != "serve") return true;
  return std::find(std::begin(kShown), std::end(kShown), metric) != std::end(kShown);
}

std::string Words(const Json* value) {
  if (value == nullptr || value->is_null()) return "unknown";
  std::string text = value->is_string() ? value->as_string() : value->Dump();
  if (text.size() > 200) text = text.substr(0, 200) + "...";
  return text;
}

const Json* PointNamed(const Json& result, const std::string& name) {
  for (const Json& point : result.Find("points")->as_array()) {
    if (const Json* own = point.Find("name"); own != nullptr && *own == Json(name)) return &point;
  }
  return nullptr;
}

// A metric's values over the rounds of a point.
Samples SamplesOf(const Json& point, const std::string& metric) {
  std::vector<double> values;
  for (const Json& round : point.Find("rounds")->as_array()) {
    const Json* value = round.Find(metric);
    if (value == nullptr || !value->is_number()) continue;
    if (std::isfinite(value->as_double())) values.push_back(value->as_double());
  }
  return Samples(std::move(values));
}

double SpreadPercent(const Samples& samples) {
  if (samples.count() < 2 || samples.median() == 0) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  return 100 * (samples.max() - samples.min()) / std::abs(samples.median());
}

std::string Verdict(const Samples& a, const Samples& b) {
  if (a.count() < 2 || b.count() < 2) return "one round: noise unknown";
  return a.max() < b.min() || b.max() < a.min() ? "beyond noise" : "within noise";
}

void AddPoint(const std::string& kind, const std::string& name, const Json& a, const Json& b,
              TextTable& table) {
  const Json::Array& rounds = a.Find("rounds")->as_array();
  if (rounds.empty()) return;
  for (const auto& [metric, unused] : rounds[0].members()) {
    if (!IsShown(kind, metric)) continue;
    const Samples of_a = SamplesOf(a, metric);
    const Samples of_b = SamplesOf(b, metric);
    if (of_a.count() == 0 || of_b.count() == 0) continue;
    const double change = of_a.median() == 0
                              ? std::numeric_limits<double>::quiet_NaN()
                              : 100 * (of_b.median() - of_a.median()) / std::abs(of_a.median());
    table.rows.push_back({name, metric, of_a.min(), of_a.median(), of_a.max(), of_b.min(),
                          of_b.median(), of_b.max(), change, SpreadPercent(of_a),
                          SpreadPercent(of_b), Verdict(of_a, of_b)});
  }
}

bool IsPoint(const Json& point) {
  const Json* name = point.Find("name");
  const Json* rounds = point.Find("rounds");
  if (name == nullptr || !name->is_string() || rounds == nullptr || !rounds->is_array()) {
    return false;
  }
  const Json::Array& all = rounds->as_array();
  return std::all_of(all.begin(), all.end(), [](const Json& round) { return round.is_object(); });
}

absl::Status CheckResult(const Json& json) {
  const Json* schema = json.Find("schema");
  const Json* kind = json.Find("kind");
  const Json* points = json.Find("points");
  const Json* settings = json.Find("settings");
  const Json* conditions = json.Find("conditions");
  if (schema == nullptr || *schema != Json(Report::kSchema) || kind == nullptr ||
      !kind->is_string() || points == nullptr || !points->is_array() || settings == nullptr ||
      !settings->is_object() || conditions == nullptr || !conditions->is_object()) {
    return InvalidArgument("expected the result.json of a polyreme bench ({})", Report::kSchema);
  }
  const Json::Array& all = points->as_array();
  if (!std::all_of(all.begin(), all.end(), IsPoint)) {
    return InvalidArgument("expected points with a name and rounds of figures");
  }
  return absl::OkStatus();
}

std::string Heading(char letter, const Json& result) {
  const Json& conditions = *result.Find("conditions");
  return fmt::format("{}: {}, commit {}, {}, {}\n", letter, Words(conditions.Find("date")),
                     Words(conditions.Find("commit")), Words(conditions.Find("hardware")),
                     Words(conditions.Find("command")));
}

}  // namespace

absl::StatusOr<Json> ReadResult(const std::string& path) {
  std::error_code error;
  const std::string file =
      std::filesystem::is_directory(path, error) ? path + "/result.json" : path;
  ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kMaxResultBytes));
  absl::StatusOr<Json> json = Json::Parse(text);
  if (!json.ok()) return Annotate(json.status(), file);
  RETURN_IF_ERROR(Annotate(CheckResult(*json), file));
  return json;
}

std::vector<std::string> Unlikenesses(const Json& a, const Json& b) {
  std::vector<std::string> found;
  const auto compare = [&found](std::string_view name, const Json* of_a, const Json* of_b) {
    const Json nothing;
    const Json& left = of_a == nullptr ? nothing : *of_a;
    const Json& right = of_b == nullptr ? nothing : *of_b;
    if (left == right) return;
    found.push_back(fmt::format("{}: {} against {}", name, Words(of_a), Words(of_b)));
  };
  compare("kind", a.Find("kind"), b.Find("kind"));
  for (const std::string_view name : Report::kLikeness) {
    compare(name, a.Find("settings")->Find(name), b.Find("settings")->Find(name));
  }
  return found;
}

absl::StatusOr<Comparison> Compare(const Json& a, const Json& b, bool forced) {
  RETURN_IF_ERROR(Annotate(CheckResult(a), "A"));
  RETURN_IF_ERROR(Annotate(CheckResult(b), "B"));
  const std::vector<std::string> unlike = Unlikenesses(a, b);
  if (!unlike.empty() && !forced) {
    return FailedPrecondition("the two runs are unlike in {}; --force compares them all the same",
                              fmt::join(unlike, "; "));
  }
  Comparison comparison;
  comparison.text = Heading('A', a) + Heading('B', b);
  if (!unlike.empty()) {
    comparison.text +=
        fmt::format("UNLIKE, compared because of --force: {}\n", fmt::join(unlike, "; "));
  }
  comparison.table.columns = {{"point", 0},    {"figure", 0},    {"A min", 2},     {"A median", 2},
                              {"A max", 2},    {"B min", 2},     {"B median", 2},  {"B max", 2},
                              {"B vs A %", 1}, {"A noise %", 1}, {"B noise %", 1}, {"", 0}};
  const std::string kind = a.Find("kind")->as_string();
  std::string missing;
  for (const Json& point : a.Find("points")->as_array()) {
    const std::string& name = point.Find("name")->as_string();
    const Json* const other = PointNamed(b, name);
    if (other != nullptr) {
      AddPoint(kind, name, point, *other, comparison.table);
    } else {
      missing += (missing.empty() ? "" : ", ") + name;
    }
  }
  if (comparison.table.rows.empty()) {
    return InvalidArgument("the two results have no figure in common");
  }
  comparison.text += "\n" + comparison.table.Text();
  if (!missing.empty()) comparison.text += fmt::format("\nonly in A: {}\n", missing);
  return comparison;
}

}  // namespace polyreme::bench
