// A table of figures: for a terminal, as Markdown and as CSV. Pure.
#pragma once

#include <string>
#include <variant>
#include <vector>

namespace polyreme::bench {

struct TextTable {
  struct Column {
    std::string name;  // with its unit: "TTFT p50 ms"
    int digits = 1;    // behind the point, for people
  };
  // A number that is not finite is shown as "-" and left empty in CSV.
  using Cell = std::variant<std::string, double>;

  std::vector<Column> columns;
  std::vector<std::vector<Cell>> rows;  // each as long as columns

  std::string Text() const;  // aligned, texts left and numbers right
  std::string Markdown() const;
  std::string Csv() const;  // RFC 4180, numbers in full
};

}  // namespace polyreme::bench
