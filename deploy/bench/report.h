// What a bench leaves behind: one shape for all of them, so that any two runs of a kind can be laid
// side by side.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "deploy/bench/conditions.h"
#include "deploy/bench/text_table.h"
#include "deploy/plot/gnuplot.h"
#include "parallel/base/json.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

// Named figures; NaN for one that there is none of.
using Metrics = std::vector<std::pair<std::string, double>>;

struct ReportPoint {
  std::string name;             // "concurrency 8"
  std::vector<Metrics> rounds;  // of one repetition each
};

struct Report {
  static constexpr std::string_view kSchema = "polyreme.bench/1";

  std::string kind;  // "sweep"
  std::string title;
  Conditions conditions;
  // What was measured. Two runs whose settings under kLikeness differ are not alike.
  Json settings = Json::MakeObject();
  static constexpr std::string_view kLikeness[] = {"model", "dtype", "prompts", "lengths", "load"};
  std::vector<ReportPoint> points;
  TextTable table;
  std::string notes;  // lines under the table
  bool interrupted = false;
  absl::Status failure;  // why it ended early; what is here was measured before
  std::vector<plot::Figure> figures;
  // Calls its argument with each line of the raw data; may be empty.
  std::function<void(const std::function<void(const Json&)>&)> each_request;

  bool EndedEarly() const { return interrupted || !failure.ok(); }
  std::string Text() const;  // for a terminal: title, table, notes, conditions
  std::string Markdown() const;
  Json ToJson() const;
};

// Writes result.json, table.csv, report.md, requests.jsonl (where there are requests) and plots/
// into `directory`, which is made if need be. Returns lines that say what was written and, where
// gnuplot is missing, how to draw. FailedPrecondition names the file that cannot be written.
absl::StatusOr<std::string> WriteReport(const Report& report, const std::string& directory);

// A report whose points are the rows of `table`: each named by its first column, with one round of
// the others.
Report ReportOfTable(const std::string& kind, const std::string& title, const TextTable& table);

// Whether `directory` can be written to, before anything is measured.
absl::Status PrepareOutput(const std::string& directory);

}  // namespace polyreme::bench
