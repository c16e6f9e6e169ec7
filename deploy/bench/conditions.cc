#include "deploy/bench/conditions.h"

#include <fmt/format.h>
#include <sys/utsname.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "absl/time/time.h"
#include "deploy/bench/subprocess.h"
#include "parallel/base/clock.h"

namespace polyreme::bench {
namespace {

// What is behind the colon of the first line of `path` that begins with `name`.
std::string FieldOf(const std::string& path, std::string_view name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (!line.starts_with(name) || colon == std::string::npos) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

std::string Gpus() {
  std::map<std::string, int> counts;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/driver/nvidia/gpus", error)) {
    ++counts[FieldOf(entry.path() / "information", "Model")];
  }
  std::string text;
  for (const auto& [name, count] : counts) text += fmt::format(", {} x {}", count, name);
  return text;
}

std::string Driver() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string line;
  std::getline(file, line);
  const size_t begin =
      line.find("  ");  // "NVRM version: NVIDIA UNIX ... Module  580.159.04  Release"
  if (begin == std::string::npos) return "none";
  const size_t word = line.find_first_not_of(' ', begin);
  return word == std::string::npos ? "none" : line.substr(word, line.find(' ', word) - word);
}

// The commit of the checkout that this program lies in, or nothing.
std::string AskGit() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return "";
  const absl::StatusOr<std::string> said =
      OutputOf("git",
               {"-C", program.parent_path().string(), "describe", "--always", "--dirty",
                "--abbrev=10", "--exclude=*"},
               absl::Seconds(5), /*shows_errors=*/false);
  return said.ok() ? said->substr(0, said->find('\n')) : "";
}

std::string Commit() {
  if (const char* told = std::getenv("POLYREME_COMMIT"); told != nullptr && *told != 0) return told;
  const std::string asked = AskGit();
  return asked.empty() ? "unknown" : asked;
}

}  // namespace

Conditions GatherConditions(const std::string& command, const std::string& program) {
  Conditions conditions;
  conditions.date = absl::FormatTime("%Y-%m-%d %H:%M UTC", MonotonicNow(), absl::UTCTimeZone());
  conditions.command = command;
  conditions.program = program;
  conditions.commit = Commit();
  const double memory = std::atof(FieldOf("/proc/meminfo", "MemTotal").c_str()) / (1 << 20);
  conditions.hardware =
      fmt::format("{}, {} cores, {:.0f} GiB{}", FieldOf("/proc/cpuinfo", "model name"),
                  std::thread::hardware_concurrency(), memory, Gpus());
  conditions.driver = Driver();
  utsname name = {};
  uname(&name);
  conditions.system = fmt::format("{} {}", name.sysname, name.release);
  return conditions;
}

Json Conditions::ToJson() const {
  return Json::MakeObject({{"date", date},
                           {"command", command},
                           {"program", program},
                           {"commit", commit},
                           {"hardware", hardware},
                           {"driver", driver},
                           {"system", system},
                           {"roofline", roofline}});
}

std::string Conditions::Markdown() const {
  return fmt::format(
      "- date: {}\n- command: `{}`\n- program: {}, commit {}\n- hardware: {}; driver {}; {}\n"
      "- roofline of this run: {}\n",
      date, command, program, commit, hardware, driver, system, roofline);
}

}  // namespace polyreme::bench
