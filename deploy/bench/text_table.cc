#include "deploy/bench/text_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace polyreme::bench {
namespace {

std::string ForPeople(const TextTable::Cell& cell, int digits) {
  if (const auto* text = std::get_if<std::string>(&cell); text != nullptr) return *text;
  const double value = std::get<double>(cell);
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : "-";
}

std::string ForCsv(const TextTable::Cell& cell) {
  if (const auto* text = std::get_if<std::string>(&cell); text != nullptr) {
    if (text->find_first_of(",\"\r\n") == std::string::npos) return *text;
    std::string quoted = "\"";
    for (const char c : *text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
    return quoted + '"';
  }
  const double value = std::get<double>(cell);
  return std::isfinite(value) ? fmt::format("{:.9g}", value) : "";
}

// Cells lie between `left` and `right`, joined by `between`.
template <class Range, class Format>
std::string Line(const Range& cells, std::string_view left, std::string_view between,
                 std::string_view right, Format format) {
  std::string line(left);
  size_t index = 0;
  for (const auto& cell : cells) {
    if (index > 0) line += between;
    line += format(cell, index++);
  }
  return line + std::string(right);
}

}  // namespace

std::string TextTable::Text() const {
  std::vector<size_t> widths;
  for (const Column& column : columns) widths.push_back(column.name.size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], ForPeople(row[i], columns[i].digits).size());
    }
  }
  const auto is_left = [this](size_t i) {
    return !rows.empty() && std::holds_alternative<std::string>(rows[0][i]);
  };
  const auto padded = [&](const std::string& text, size_t i) {
    return is_left(i) ? fmt::format("{:<{}}", text, widths[i])
                      : fmt::format("{:>{}}", text, widths[i]);
  };
  const auto name = [&](const Column& column, size_t i) { return padded(column.name, i); };
  const auto cell = [&](const Cell& c, size_t i) {
    return padded(ForPeople(c, columns[i].digits), i);
  };
  std::string text = Line(columns, "", "  ", "\n", name);
  for (const auto& row : rows) text += Line(row, "", "  ", "\n", cell);
  return text;
}

std::string TextTable::Markdown() const {
  const auto name = [](const Column& column, size_t) { return column.name; };
  const auto rule = [](const Column&, size_t) { return "---"; };
  const auto cell = [this](const Cell& c, size_t i) { return ForPeople(c, columns[i].digits); };
  std::string text = Line(columns, "| ", " | ", " |\n", name);
  text += Line(columns, "|", "|", "|\n", rule);
  for (const auto& row : rows) text += Line(row, "| ", " | ", " |\n", cell);
  return text;
}

std::string TextTable::Csv() const {
  const auto name = [](const Column& column, size_t) { return ForCsv(column.name); };
  const auto cell = [](const Cell& c, size_t) { return ForCsv(c); };
  std::string text = Line(columns, "", ",", "\n", name);
  for (const auto& row : rows) text += Line(row, "", ",", "\n", cell);
  return text;
}

}  // namespace polyreme::bench
