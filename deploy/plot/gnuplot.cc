#include "deploy/plot/gnuplot.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include "parallel/launch/launch_env.h"

namespace polyreme::plot {
namespace {

// A string of gnuplot's in single quotes, in which only the quote itself is special.
std::string Quoted(std::string_view text) {
  std::string quoted = "'";
  for (const char c : text) {
    if (c == '\'') quoted += '\'';
    quoted += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return quoted + "'";
}

std::string Number(double value) {
  return std::isfinite(value) ? fmt::format("{:.6g}", value) : "NaN";
}

bool IsFileName(const std::string& name) {
  const auto fine = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  };
  return !name.empty() && name[0] != '.' && name.size() <= 100 &&
         std::all_of(name.begin(), name.end(), fine);
}

absl::Status Check(const Figure& figure) {
  if (!IsFileName(figure.name)) {
    return InvalidArgument(
        "a figure's name is expected to have letters, digits, '-', '_' and '.', got '{:.60}'",
        figure.name);
  }
  const bool bars = figure.kind == Figure::Kind::kStackedBars;
  if (figure.series.empty()) return InvalidArgument("figure {} has no series", figure.name);
  for (const Series& series : figure.series) {
    const size_t expected = bars ? figure.categories.size() : series.x.size();
    if (series.y.size() != expected) {
      return InvalidArgument("figure {}, '{:.60}': expected {} values, got {}", figure.name,
                             series.title, expected, series.y.size());
    }
  }
  return absl::OkStatus();
}

std::string_view WithOf(Series::Style style) {
  switch (style) {
    case Series::Style::kLinesPoints:
      return "linespoints lw 2 pt 7 ps 0.6";
    case Series::Style::kLines:
      return "lines lw 2";
    case Series::Style::kPoints:
      return "points pt 7 ps 1.2";
  }
  return "";
}

absl::Status WriteFile(const std::string& path, std::string_view text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (file) return absl::OkStatus();
  return FailedPrecondition("{}: cannot be written: {}", path, std::strerror(errno));
}

std::optional<std::string> FindProgram(const std::string& name) {
  if (name.find('/') != std::string::npos) {
    return access(name.c_str(), X_OK) == 0 ? std::optional(name) : std::nullopt;
  }
  const std::string path = launch::ProcessEnvironment()("PATH").value_or("");
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find(':', begin), path.size());
    const std::string found = path.substr(begin, end - begin) + "/" + name;
    if (access(found.c_str(), X_OK) == 0) return found;
    begin = end + 1;
  }
  return std::nullopt;
}

// Waits for a child and takes its exit code; nullopt if it did not end in time, and is killed.
std::optional<int> WaitFor(pid_t child, absl::Duration patience) {
  const auto fd = static_cast<int>(syscall(SYS_pidfd_open, child, 0));
  pollfd ended{fd, POLLIN, 0};
  const bool in_time =
      fd >= 0 && poll(&ended, 1, static_cast<int>(absl::ToInt64Milliseconds(patience))) > 0;
  if (fd >= 0) close(fd);
  if (!in_time) kill(child, SIGKILL);
  int status = 0;
  if (waitpid(child, &status, 0) != child || !in_time) return std::nullopt;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

// Why the script was not drawn; empty if it was.
std::string Draw(const std::string& gnuplot, const std::string& directory, const std::string& name,
                 const Options& options) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addchdir_np(&actions, directory.c_str());
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
  std::string program = gnuplot, script = name + ".gp";
  char* const arguments[] = {program.data(), script.data(), nullptr};
  pid_t child = 0;
  const int error = posix_spawn(&child, gnuplot.c_str(), &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return fmt::format("{} cannot be started: {}", gnuplot, std::strerror(error));
  const std::optional<int> code = WaitFor(child, options.patience);
  if (!code.has_value()) {
    return fmt::format("{} {} did not end within {}", gnuplot, script,
                       absl::FormatDuration(options.patience));
  }
  if (*code != 0) return fmt::format("{} {} ended with code {}", gnuplot, script, *code);
  return "";
}

}  // namespace

std::string DataText(const Figure& figure) {
  std::string text = fmt::format("# {}\n", Quoted(figure.title));
  if (figure.kind == Figure::Kind::kStackedBars) {
    for (size_t i = 0; i < figure.categories.size(); ++i) {
      std::string label = figure.categories[i];
      std::replace_if(
          label.begin(), label.end(),
          [](char c) { return c == '"' || static_cast<unsigned char>(c) < ' '; }, ' ');
      text += '"' + label + '"';
      for (const Series& series : figure.series) text += ' ' + Number(series.y[i]);
      text += '\n';
    }
    return text;
  }
  // gnuplot's `index`: blocks between two empty lines.
  for (const Series& series : figure.series) {
    text += fmt::format("# {}\n", Quoted(series.title));
    for (size_t i = 0; i < series.x.size(); ++i) {
      text += Number(series.x[i]) + ' ' + Number(series.y[i]) + '\n';
    }
    if (series.x.empty()) text += "NaN NaN\n";
    text += "\n\n";
  }
  return text;
}

std::string ScriptText(const Figure& figure, const Options& options) {
  const bool bars = figure.kind == Figure::Kind::kStackedBars;
  std::string text = fmt::format(
      "# gnuplot {}.gp\nset encoding utf8\nset title {} noenhanced\nset xlabel {} noenhanced\n"
      "set ylabel {} noenhanced\nset key below noenhanced\nset grid\nset style fill solid "
      "0.8 border -1\nset datafile missing 'NaN'\n",
      figure.name, Quoted(figure.title), Quoted(figure.x_label), Quoted(figure.y_label));
  if (figure.log_x) text += "set logscale x 2\n";
  if (figure.log_y) text += "set logscale y 10\n";
  if (bars) {
    text +=
        "set style data histograms\nset style histogram rowstacked\nset boxwidth 0.7\n"
        "set xtics rotate by -30 noenhanced\n";
  }
  if (!figure.log_y) text += "set yrange [0:*]\n";
  std::vector<std::string> items;
  const std::string data = Quoted(figure.name + ".dat");
  for (size_t i = 0; i < figure.series.size(); ++i) {
    const Series& series = figure.series[i];
    items.push_back(
        bars ? fmt::format("{} using {}:xtic(1) title {}", data, i + 2, Quoted(series.title))
             : fmt::format("{} index {} using 1:2 with {} title {}", data, i, WithOf(series.style),
                           Quoted(series.title)));
  }
  for (const Level& level : figure.levels) {
    items.push_back(
        fmt::format("{} with lines lw 2 dt 2 title {}", Number(level.y), Quoted(level.title)));
  }
  const std::string plot = fmt::format("plot {}\n", fmt::join(items, ", \\\n     "));
  for (const auto& [terminal, ending] :
       {std::pair("svg noenhanced", "svg"), std::pair("pngcairo noenhanced", "png")}) {
    text += fmt::format("set terminal {} size {},{}\nset output {}\n{}", terminal, options.width,
                        options.height, Quoted(figure.name + "." + ending), plot);
  }
  return text + "unset output\n";
}

absl::StatusOr<Report> WriteFigures(const std::string& directory,
                                    const std::vector<Figure>& figures, const Options& options) {
  for (const Figure& figure : figures) RETURN_IF_ERROR(Check(figure));
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return FailedPrecondition("{}: cannot be made: {}", directory, error.message());
  const std::optional<std::string> gnuplot = FindProgram(options.gnuplot);
  Report report;
  for (const Figure& figure : figures) {
    const std::string stem = directory + "/" + figure.name;
    RETURN_IF_ERROR(WriteFile(stem + ".dat", DataText(figure)));
    RETURN_IF_ERROR(WriteFile(stem + ".gp", ScriptText(figure, options)));
    report.files.insert(report.files.end(), {figure.name + ".dat", figure.name + ".gp"});
    if (!gnuplot.has_value() || !report.note.empty()) continue;
    report.note = Draw(*gnuplot, directory, figure.name, options);
    if (report.note.empty()) {
      report.files.insert(report.files.end(), {figure.name + ".svg", figure.name + ".png"});
    }
  }
  report.drawn = gnuplot.has_value() && report.note.empty();
  if (!gnuplot.has_value()) {
    report.note = fmt::format(
        "no {} here: to draw the pictures, install gnuplot-nox (or copy the folder to where it is) "
        "and run `gnuplot *.gp` in {}",
        options.gnuplot, directory);
  }
  return report;
}

}  // namespace polyreme::plot
