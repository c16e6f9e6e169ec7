#include "deploy/bench/report.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace polyreme::bench {
namespace {

Json MetricsJson(const Metrics& metrics) {
  Json object = Json::MakeObject();
  for (const auto& [name, value] : metrics) object.Set(name, value);
  return object;
}

absl::Status WriteText(const std::string& path, std::string_view text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.flush();
  if (!file) return FailedPrecondition("{} cannot be written", path);
  return absl::OkStatus();
}

absl::Status WriteRequests(const Report& report, const std::string& path) {
  std::ofstream file(path, std::ios::binary);
  report.each_request([&file](const Json& line) { file << line.Dump() << '\n'; });
  file.flush();
  if (!file) return FailedPrecondition("{} cannot be written", path);
  return absl::OkStatus();
}

}  // namespace

std::string Report::Text() const {
  return fmt::format("{}\n{}\n{}{}\n{}", title,
                     interrupted ? "interrupted: what was measured\n" : "", table.Text(),
                     notes.empty() ? "" : "\n" + notes, conditions.Markdown());
}

std::string Report::Markdown() const {
  std::string text = fmt::format("# {}\n\n{}\n", title, conditions.Markdown());
  if (interrupted) text += "Interrupted: what was measured until then.\n\n";
  text += table.Markdown();
  if (!notes.empty()) text += "\n```\n" + notes + "```\n";
  for (const plot::Figure& figure : figures) {
    text += fmt::format("\n![{}](plots/{}.svg)\n", figure.title, figure.name);
  }
  return text;
}

Json Report::ToJson() const {
  Json all = Json::MakeArray();
  for (const ReportPoint& point : points) {
    Json rounds = Json::MakeArray();
    for (const Metrics& metrics : point.rounds) rounds.Append(MetricsJson(metrics));
    all.Append(Json::MakeObject({{"name", point.name}, {"rounds", std::move(rounds)}}));
  }
  return Json::MakeObject({{"schema", kSchema},
                           {"kind", kind},
                           {"interrupted", interrupted},
                           {"conditions", conditions.ToJson()},
                           {"settings", settings},
                           {"points", std::move(all)}});
}

Report ReportOfTable(const std::string& kind, const std::string& title, const TextTable& table) {
  Report report;
  report.kind = kind;
  report.title = title;
  report.table = table;
  for (const auto& row : table.rows) {
    Metrics metrics;
    for (size_t i = 1; i < row.size(); ++i) {
      if (const double* value = std::get_if<double>(&row[i]); value != nullptr) {
        metrics.emplace_back(table.columns[i].name, *value);
      }
    }
    report.points.push_back({std::get<std::string>(row[0]), {std::move(metrics)}});
  }
  return report;
}

absl::Status PrepareOutput(const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error || access(directory.c_str(), W_OK | X_OK) != 0) {
    return FailedPrecondition("--output {}: {}", directory,
                              error ? error.message() : "no folder that can be written to");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> WriteReport(const Report& report, const std::string& directory) {
  RETURN_IF_ERROR(PrepareOutput(directory));
  RETURN_IF_ERROR(WriteText(directory + "/result.json", report.ToJson().Dump() + "\n"));
  RETURN_IF_ERROR(WriteText(directory + "/table.csv", report.table.Csv()));
  RETURN_IF_ERROR(WriteText(directory + "/report.md", report.Markdown()));
  if (report.each_request) RETURN_IF_ERROR(WriteRequests(report, directory + "/requests.jsonl"));
  std::string said = fmt::format("written: {}/report.md, result.json, table.csv{}\n", directory,
                                 report.each_request ? ", requests.jsonl" : "");
  if (report.figures.empty()) return said;
  ASSIGN_OR_RETURN(const plot::Report drawn,
                   plot::WriteFigures(directory + "/plots", report.figures));
  if (drawn.drawn)
    return said + fmt::format("drawn: {} figures in {}/plots\n", report.figures.size(), directory);
  return said + drawn.note + "\n";
}

}  // namespace polyreme::bench
