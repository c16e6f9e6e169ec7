// Command-line flags as a table: names with aliases, a value, a sentence of help.
//
// Accepts `--name value`, `--name=value`, one-dash names of several letters (`-tp 2`, as vLLM has
// them) and underscores for dashes. (Why not a library: docs/decisions/0005-own-flag-table.md.)
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/status.h"

namespace polyreme::cli {

class FlagSet {
 public:
  // Takes the value's text; its error is reported with the flag's name in front.
  using Setter = std::function<absl::Status(const std::string& value)>;

  // usage: the first lines of the help, without a trailing newline.
  explicit FlagSet(std::string usage) : usage_(std::move(usage)) {}

  // A heading in the help for the flags that follow.
  void Section(std::string title);
  // names: the first is the one that help and messages use. value_name is empty for a switch.
  void Add(std::vector<std::string> names, std::string value_name, std::string help, Setter setter);
  // Accepted, without effect, hidden from help: flags of other servers that change nothing here.
  void Ignore(std::vector<std::string> names, std::string value_name);

  // Sets what the arguments say; what is no flag goes to `positional`. "--" ends the flags.
  // InvalidArgument: an unknown flag (with the nearest known one), a missing value, a bad value,
  // one flag given twice with different values.
  absl::Status Parse(const std::vector<std::string>& arguments,
                     std::vector<std::string>& positional);
  std::string Help() const;

 private:
  struct Flag {
    std::vector<std::string> names;
    std::string value_name;
    std::string help;
    Setter setter;
    int section = -1;  // -1: hidden
  };
  absl::StatusOr<size_t> Find(const std::string& name) const;

  std::string usage_;
  std::vector<std::string> sections_;
  std::vector<Flag> flags_;
  std::map<std::string, size_t> index_;
};

// Setters for common types; the target is borrowed.
FlagSet::Setter SetString(std::string* target);
FlagSet::Setter SetInt(int32_t* target, int32_t min, int32_t max);
// "inf" is a number too, where max is infinite.
FlagSet::Setter SetNumber(double* target, double min, double max);
// Plain bytes, or with K, M, G (powers of 1024), fractions allowed: "1.5G".
FlagSet::Setter SetBytes(int64_t* target);
// Seconds, fractions allowed.
FlagSet::Setter SetSeconds(absl::Duration* target);
// Above 0 and at most 1.
FlagSet::Setter SetFraction(double* target);
FlagSet::Setter SetFlag(bool* target);
FlagSet::Setter SetOneOf(std::string* target, std::vector<std::string> choices);
// Comma-separated integers.
FlagSet::Setter SetIntList(std::vector<int64_t>* target);
// Appends; the flag may be given several times.
FlagSet::Setter AppendString(std::vector<std::string>* target);

}  // namespace polyreme::cli
