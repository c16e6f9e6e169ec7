// One line of log to stderr: time, level, who (set once per process), text. Log once, where it is
// handled.
#pragma once

#include <fmt/core.h>

#include <string>
#include <string_view>
#include <utility>

namespace polyreme {

enum class LogLevel { kInfo, kWarning, kError };

// Names this process in its log lines ("worker rank 1", "coordinator"). Call once, before threads
// start.
void SetLogName(std::string name);
// Writes one line with one write(2), so that lines of several processes do not mix. Control
// characters in `text` are escaped, so that nothing a client sends can forge a line. Any thread.
void LogLine(LogLevel level, std::string_view text);

template <class... Args>
void LogInfo(fmt::format_string<Args...> format, Args&&... args) {
  LogLine(LogLevel::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void LogWarning(fmt::format_string<Args...> format, Args&&... args) {
  LogLine(LogLevel::kWarning, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void LogError(fmt::format_string<Args...> format, Args&&... args) {
  LogLine(LogLevel::kError, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace polyreme
