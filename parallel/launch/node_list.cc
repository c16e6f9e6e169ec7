#include "parallel/launch/node_list.h"

#include <charconv>
#include <utility>

#include "parallel/base/limits.h"

namespace polyreme::launch {
namespace {

absl::Status Malformed(std::string_view text) {
  return InvalidArgument("expected a list such as n[01-04,7],x, got '{:.200}'", text);
}
absl::Status TooMany() {
  return InvalidArgument("expected at most {} nodes", limits::kMaxRanks);
}

absl::StatusOr<int32_t> ParseNumber(std::string_view digits) {
  int32_t value = 0;
  const char* end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, value);
  if (error != std::errc() || stop != end || value < 0) {
    return InvalidArgument("expected a number, got '{:.40}'", digits);
  }
  return value;
}

// Cuts `text` at commas outside brackets.
absl::StatusOr<std::vector<std::string_view>> SplitOutside(std::string_view text) {
  std::vector<std::string_view> parts;
  bool inside = false;
  size_t start = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    const char c = i < text.size() ? text[i] : ',';
    if (c == '[' || c == ']') {
      if (inside == (c == '[')) return Malformed(text);
      inside = c == '[';
    } else if (c == ',' && (!inside || i == text.size())) {
      if (inside || i == start) return Malformed(text);
      parts.push_back(text.substr(start, i - start));
      start = i + 1;
    }
  }
  return parts;
}

// "01-04,7" -> 01 02 03 04 7. The width of the first number is kept.
absl::StatusOr<std::vector<std::string>> ExpandRanges(std::string_view ranges) {
  std::vector<std::string> numbers;
  ASSIGN_OR_RETURN(const std::vector<std::string_view> parts, SplitOutside(ranges));
  for (const std::string_view part : parts) {
    const size_t dash = part.find('-');
    const std::string_view low = part.substr(0, dash);
    const std::string_view high = dash == std::string_view::npos ? low : part.substr(dash + 1);
    ASSIGN_OR_RETURN(const int32_t begin, ParseNumber(low));
    ASSIGN_OR_RETURN(const int32_t end, ParseNumber(high));
    if (end < begin) return Malformed(ranges);
    if (end - begin >= limits::kMaxRanks - std::ssize(numbers)) return TooMany();
    // 64 bits: the last number may be the largest that there is.
    for (int64_t i = begin; i <= end; ++i) numbers.push_back(fmt::format("{:0{}}", i, low.size()));
  }
  return numbers;
}

// All names that one term stands for: each bracket multiplies.
absl::StatusOr<std::vector<std::string>> ExpandTerm(std::string_view term) {
  std::vector<std::string> names = {""};
  while (!term.empty()) {
    const size_t open = term.find('[');
    for (std::string& name : names) name += term.substr(0, open);
    if (open == std::string_view::npos) break;
    const size_t close = term.find(']');
    ASSIGN_OR_RETURN(const std::vector<std::string> numbers,
                     ExpandRanges(term.substr(open + 1, close - open - 1)));
    if (std::ssize(names) * std::ssize(numbers) > limits::kMaxRanks) return TooMany();
    std::vector<std::string> longer;
    for (const std::string& name : names) {
      for (const std::string& number : numbers) longer.push_back(name + number);
    }
    names = std::move(longer);
    term.remove_prefix(close + 1);
  }
  return names;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ParseNodeList(std::string_view text) {
  std::vector<std::string> nodes;
  ASSIGN_OR_RETURN(const std::vector<std::string_view> terms, SplitOutside(text));
  for (const std::string_view term : terms) {
    ASSIGN_OR_RETURN(const std::vector<std::string> names, ExpandTerm(term));
    nodes.insert(nodes.end(), names.begin(), names.end());
    if (std::ssize(nodes) > limits::kMaxRanks) return TooMany();
  }
  return nodes;
}

absl::StatusOr<std::vector<int32_t>> ParseTasksPerNode(std::string_view text) {
  std::vector<int32_t> counts;
  ASSIGN_OR_RETURN(const std::vector<std::string_view> terms, SplitOutside(text));
  for (const std::string_view term : terms) {
    const size_t open = term.find("(x");
    int32_t repeats = 1;
    if (open != std::string_view::npos) {
      if (!term.ends_with(')')) return Malformed(text);
      ASSIGN_OR_RETURN(repeats, ParseNumber(term.substr(open + 2, term.size() - open - 3)));
    }
    ASSIGN_OR_RETURN(const int32_t count, ParseNumber(term.substr(0, open)));
    if (repeats > limits::kMaxRanks - std::ssize(counts)) return TooMany();
    counts.insert(counts.end(), static_cast<size_t>(repeats), count);
  }
  return counts;
}

}  // namespace polyreme::launch
