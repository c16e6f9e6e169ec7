#include "parallel/base/log.h"

#include <fmt/format.h>
#include <unistd.h>

#include <ctime>

#include "parallel/base/process_identity.h"

namespace polyreme {
namespace {

// Written once by SetLogName before any other thread exists; read-only afterwards.
std::string& ProcessName() {
  static std::string name = "polyreme";
  return name;
}

}  // namespace

void SetLogName(std::string name) { ProcessName() = std::move(name); }
const std::string& GetLogName() { return ProcessName(); }

void LogLine(LogLevel level, std::string_view text) {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  tm parts{};
  gmtime_r(&now.tv_sec, &parts);
  constexpr char kLetters[] = {'I', 'W', 'E'};
  std::string line = fmt::format("{:02}:{:02}:{:02}.{:03} {} [{}] ", parts.tm_hour, parts.tm_min,
                                 parts.tm_sec, now.tv_nsec / 1000000,
                                 kLetters[static_cast<int>(level)], ProcessName());
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20 && c != '\t') {
      line += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      line += c;
    }
  }
  line += '\n';
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace polyreme
