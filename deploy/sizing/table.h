// Columns of text that line up.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace polyreme::sizing {

class Table {
 public:
  explicit Table(std::vector<std::string> heads) { rows_.push_back(std::move(heads)); }
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  // The first column to the left, the others to the right; a line each.
  std::string ToString() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

std::string Grouped(int64_t number);   // "172,464"
std::string Gibibytes(int64_t bytes);  // "74.12 GiB", "320 KiB": as large as fits
std::string Tokens(int64_t tokens);    // "2K", "512"
std::string Rate(double per_second);   // "3905", "54.2", "0.24"
std::string Seconds(double seconds);   // "0.21 s"

}  // namespace polyreme::sizing
