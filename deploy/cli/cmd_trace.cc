// `polyreme trace`: the merged story of flight records, and which rank fell behind.

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>

#include "deploy/cli/commands.h"
#include "deploy/cli/flags.h"
#include "parallel/base/file.h"
#include "parallel/trace/flight_story.h"

namespace polyreme::cli {
namespace {

namespace fs = std::filesystem;

constexpr char kUsage[] =
    "usage: polyreme trace [--events N] FILE|DIRECTORY...\n\n"
    "Reads flight records, which ranks leave after a failure (--flight-recorder-dir of polyreme\n"
    "serve), and tells for each lost epoch what each rank did last, and which one fell behind.";

// Directories stand for the records in them.
absl::StatusOr<std::vector<std::string>> FilesOf(const Arguments& operands) {
  std::vector<std::string> files;
  for (const std::string& operand : operands) {
    std::error_code error;
    if (!fs::is_directory(operand, error)) {
      files.push_back(operand);
      continue;
    }
    std::vector<std::string> inside;
    for (const auto& entry : fs::directory_iterator(operand, error)) {
      if (entry.path().extension() == ".flight") inside.push_back(entry.path());
    }
    if (inside.empty()) return NotFound("{} holds no .flight file", operand);
    std::sort(inside.begin(), inside.end());
    files.insert(files.end(), inside.begin(), inside.end());
  }
  if (files.empty()) return InvalidArgument("expected a FILE or DIRECTORY; see --help");
  if (std::ssize(files) > 2 * trace::kMaxFlightFiles) {
    return InvalidArgument("expected at most {} files, got {}", 2 * trace::kMaxFlightFiles,
                           files.size());
  }
  return files;
}

absl::StatusOr<std::vector<trace::FlightRecord>> ReadRecords(const Arguments& operands) {
  constexpr int64_t kMostBytes =
      trace::FlightBytes(trace::kMaxFlightEntries, trace::kMaxFlightEntries);
  ASSIGN_OR_RETURN(const std::vector<std::string> files, FilesOf(operands));
  std::vector<trace::FlightRecord> records;
  for (const std::string& file : files) {
    ASSIGN_OR_RETURN(const std::string bytes, ReadFile(file, kMostBytes));
    absl::StatusOr<trace::FlightRecord> record = trace::ParseFlightRecord(bytes);
    if (!record.ok()) return Annotate(record.status(), file);
    records.push_back(*std::move(record));
  }
  return records;
}

}  // namespace

int RunTrace(const Arguments& arguments) {
  int32_t num_events = 30;
  bool help = false;
  FlagSet flags(kUsage);
  flags.Section("Flags");
  flags.Add({"--events"}, "N", "how many of the last events to show for each epoch (default 30)",
            SetInt(&num_events, 0, 1 << 30));
  flags.Add({"--help", "-h"}, "", "this text", SetFlag(&help));
  Arguments operands;
  absl::Status status = flags.Parse(arguments, operands);
  if (help) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  if (status.ok()) {
    absl::StatusOr<std::vector<trace::FlightRecord>> records = ReadRecords(operands);
    status = records.status();
    if (status.ok()) {
      std::fputs(trace::TellFlights(*std::move(records), num_events).c_str(), stdout);
      return 0;
    }
  }
  std::fprintf(stderr, "polyreme trace: %s\n", Message(status).c_str());
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

}  // namespace polyreme::cli
