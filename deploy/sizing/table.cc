#include "deploy/sizing/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

namespace polyreme::sizing {

std::string Table::ToString() const {
  std::vector<size_t> widths;
  for (const std::vector<std::string>& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const std::vector<std::string>& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += i == 0 ? fmt::format("{:<{}}", row[i], widths[i])
                     : fmt::format("  {:>{}}", row[i], widths[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  }
  return text;
}

std::string Grouped(int64_t number) {
  std::string digits = fmt::format("{}", std::abs(number));
  for (int64_t place = std::ssize(digits) - 3; place > 0; place -= 3) {
    digits.insert(static_cast<size_t>(place), 1, ',');
  }
  if (number < 0) digits.insert(digits.begin(), '-');
  return digits;
}

std::string Gibibytes(int64_t bytes) {
  const double value = static_cast<double>(bytes);
  const double size = std::abs(value);
  if (size >= 0x1p30) return fmt::format("{:.2f} GiB", value / 0x1p30);
  if (size >= 0x1p20) return fmt::format("{:.1f} MiB", value / 0x1p20);
  if (size >= 0x1p10) return fmt::format("{:.0f} KiB", value / 0x1p10);
  return fmt::format("{} B", bytes);
}

std::string Tokens(int64_t tokens) {
  if (tokens >= 1024 && tokens % 1024 == 0) return fmt::format("{}K", tokens / 1024);
  return fmt::format("{}", tokens);
}

std::string Rate(double per_second) {
  if (per_second >= 100) return fmt::format("{:.0f}", per_second);
  if (per_second >= 1) return fmt::format("{:.1f}", per_second);
  return fmt::format("{:.2f}", per_second);
}

std::string Seconds(double seconds) {
  if (seconds >= 100) return fmt::format("{:.0f} s", seconds);
  if (seconds >= 1) return fmt::format("{:.1f} s", seconds);
  return fmt::format("{:.3f} s", seconds);
}

}  // namespace polyreme::sizing
