#include "deploy/cli/flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <numeric>

namespace polyreme::cli {
namespace {

// "--tensor_parallel_size" and "--tensor-parallel-size" are one flag.
std::string Normalised(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

// Levenshtein distance, to guess what an unknown flag was meant to be.
size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

template <class T>
bool ParseNumber(const std::string& text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

void FlagSet::Section(std::string title) {
  sections_.push_back(std::move(title));
}

void FlagSet::Add(std::vector<std::string> names, std::string value_name, std::string help,
                  Setter setter) {
  for (const std::string& name : names) {
    CHECK(index_.emplace(name, flags_.size()).second, "flag {} is defined twice", name);
  }
  flags_.push_back(Flag{std::move(names), std::move(value_name), std::move(help), std::move(setter),
                        static_cast<int>(sections_.size()) - 1});
}

void FlagSet::Ignore(std::vector<std::string> names, std::string value_name) {
  Add(std::move(names), std::move(value_name), "",
      [](const std::string&) { return absl::OkStatus(); });
  flags_.back().section = -1;
}

absl::StatusOr<size_t> FlagSet::Find(const std::string& name) const {
  if (const auto found = index_.find(Normalised(name)); found != index_.end()) return found->second;
  std::string nearest;
  size_t distance = 4;  // further away, a guess is no help
  for (const auto& [known, flag] : index_) {
    if (flags_[flag].section < 0) continue;
    if (const size_t d = EditDistance(Normalised(name), known); d < distance) {
      distance = d;
      nearest = known;
    }
  }
  if (nearest.empty()) return InvalidArgument("unknown flag {}; see --help", name);
  return InvalidArgument("unknown flag {}; did you mean {}?", name, nearest);
}

absl::Status FlagSet::Parse(const std::vector<std::string>& arguments,
                            std::vector<std::string>& positional) {
  std::map<size_t, std::string> seen;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "--") {
      positional.insert(positional.end(), arguments.begin() + static_cast<ptrdiff_t>(i) + 1,
                        arguments.end());
      break;
    }
    if (argument.size() < 2 || argument[0] != '-') {
      positional.push_back(argument);
      continue;
    }
    const size_t equals = argument.find('=');
    ASSIGN_OR_RETURN(const size_t index, Find(argument.substr(0, equals)));
    const Flag& flag = flags_[index];
    std::string value;
    if (equals != std::string::npos) {
      if (flag.value_name.empty()) {
        return InvalidArgument("{} takes no value, got '{}'", flag.names[0], argument);
      }
      value = argument.substr(equals + 1);
    } else if (!flag.value_name.empty()) {
      if (i + 1 == arguments.size()) {
        return InvalidArgument("{} needs a value: {} {}", flag.names[0], flag.names[0],
                               flag.value_name);
      }
      value = arguments[++i];
    }
    const auto [earlier, first] = seen.emplace(index, value);
    if (!first && earlier->second != value && flag.value_name.find("...") == std::string::npos) {
      return InvalidArgument("{} is given twice, as '{}' and as '{}': keep one", flag.names[0],
                             earlier->second, value);
    }
    RETURN_IF_ERROR(Annotate(flag.setter(value), flag.names[0]));
  }
  return absl::OkStatus();
}

std::string FlagSet::Help() const {
  std::string text = usage_ + "\n";
  for (int section = 0; section < static_cast<int>(sections_.size()); ++section) {
    text += fmt::format("\n{}\n", sections_[static_cast<size_t>(section)]);
    for (const Flag& flag : flags_) {
      if (flag.section != section) continue;
      std::string left = fmt::format("  {}", fmt::join(flag.names, ", "));
      if (!flag.value_name.empty()) left += " " + flag.value_name;
      constexpr size_t kColumn = 34;
      text += left.size() < kColumn ? fmt::format("{:<{}}{}\n", left, kColumn, flag.help)
                                    : fmt::format("{}\n{:<{}}{}\n", left, "", kColumn, flag.help);
    }
  }
  return text;
}

FlagSet::Setter SetString(std::string* target) {
  return [target](const std::string& value) {
    *target = value;
    return absl::OkStatus();
  };
}

FlagSet::Setter SetInt(int32_t* target, int32_t min, int32_t max) {
  return [=](const std::string& text) -> absl::Status {
    int64_t value = 0;
    if (!ParseNumber(text, value) || value < min || value > max) {
      return InvalidArgument("expected a whole number from {} to {}, got '{}'", min, max, text);
    }
    *target = static_cast<int32_t>(value);
    return absl::OkStatus();
  };
}

FlagSet::Setter SetNumber(double* target, double min, double max) {
  return [=](const std::string& text) -> absl::Status {
    double value = 0;
    if (!ParseNumber(text, value) || !(value >= min) || !(value <= max)) {
      return InvalidArgument("expected a number from {} to {}, got '{}'", min, max, text);
    }
    *target = value;
    return absl::OkStatus();
  };
}

FlagSet::Setter SetBytes(int64_t* target) {
  return [=](const std::string& text) -> absl::Status {
    std::string digits = text;
    double unit = 1;
    if (!digits.empty() && !std::isdigit(static_cast<unsigned char>(digits.back()))) {
      const char letter =
          static_cast<char>(std::toupper(static_cast<unsigned char>(digits.back())));
      unit = letter == 'K' ? 0x1p10 : letter == 'M' ? 0x1p20 : letter == 'G' ? 0x1p30 : 0;
      digits.pop_back();
    }
    double value = 0;
    if (unit == 0 || !ParseNumber(digits, value) || value < 0 || value * unit > 0x1p60) {
      return InvalidArgument("expected bytes such as 1073741824, 512M or 1.5G, got '{}'", text);
    }
    *target = static_cast<int64_t>(value * unit);
    return absl::OkStatus();
  };
}

FlagSet::Setter SetSeconds(absl::Duration* target) {
  return [=](const std::string& text) -> absl::Status {
    double value = 0;
    if (!ParseNumber(text, value) || !(value >= 0) || value > 1e9) {
      return InvalidArgument("expected seconds, got '{}'", text);
    }
    *target = absl::Seconds(value);
    return absl::OkStatus();
  };
}

FlagSet::Setter SetFraction(double* target) {
  return [=](const std::string& text) -> absl::Status {
    if (!absl::SimpleAtod(text, target) || !(*target > 0 && *target <= 1)) {
      return InvalidArgument("expected a number above 0 and at most 1, got '{:.40}'", text);
    }
    return absl::OkStatus();
  };
}

FlagSet::Setter SetFlag(bool* target) {
  return [target](const std::string&) {
    *target = true;
    return absl::OkStatus();
  };
}

FlagSet::Setter SetOneOf(std::string* target, std::vector<std::string> choices) {
  return [target, choices = std::move(choices)](const std::string& value) -> absl::Status {
    if (std::find(choices.begin(), choices.end(), value) == choices.end()) {
      return InvalidArgument("expected one of {}, got '{}'", fmt::join(choices, ", "), value);
    }
    *target = value;
    return absl::OkStatus();
  };
}

FlagSet::Setter SetIntList(std::vector<int64_t>* target) {
  return [target](const std::string& text) -> absl::Status {
    target->clear();
    size_t begin = 0;
    while (begin <= text.size()) {
      const size_t comma = std::min(text.find(',', begin), text.size());
      int64_t value = 0;
      if (!ParseNumber(text.substr(begin, comma - begin), value) || value < 0) {
        return InvalidArgument("expected whole numbers separated by commas, got '{}'", text);
      }
      target->push_back(value);
      begin = comma + 1;
    }
    return absl::OkStatus();
  };
}

FlagSet::Setter AppendString(std::vector<std::string>* target) {
  return [target](const std::string& value) {
    target->push_back(value);
    return absl::OkStatus();
  };
}

}  // namespace polyreme::cli
