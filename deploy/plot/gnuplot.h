// Pictures of tables: each figure as data and a gnuplot script, which draw again anywhere, and,
// where gnuplot is there, as SVG and PNG.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/status.h"

namespace polyreme::plot {

struct Series {
  enum class Style { kLinesPoints, kLines, kPoints };
  std::string title;
  // Of one length. A bar chart's x are ignored: y[i] belongs to categories[i]. A y that is not
  // finite is a gap.
  std::vector<double> x;
  std::vector<double> y;
  Style style = Style::kLinesPoints;
};

// A line across the whole figure at height y.
struct Level {
  std::string title;
  double y = 0;
};

struct Figure {
  enum class Kind { kCurves, kStackedBars };
  std::string name;  // of its files: letters, digits, '-', '_' and '.'
  std::string title;
  std::string x_label;
  std::string y_label;
  Kind kind = Kind::kCurves;
  bool log_x = false;  // base 2
  bool log_y = false;  // base 10
  std::vector<Series> series;
  std::vector<std::string> categories;  // of stacked bars
  std::vector<Level> levels;
};

struct Report {
  std::vector<std::string> files;  // written, in the directory
  // Whether gnuplot drew; else `note` says in one line what to do.
  bool drawn = false;
  std::string note;
};

struct Options {
  std::string gnuplot = "gnuplot";              // looked for in PATH, unless it is a path
  absl::Duration patience = absl::Seconds(30);  // for one figure
  int width = 800;                              // pixels
  int height = 480;
};

// Writes NAME.dat, NAME.gp and, drawn by gnuplot, NAME.svg and NAME.png into `directory`, which is
// made if need be. InvalidArgument: a figure that cannot be drawn (a bad name, lengths that differ,
// no series); FailedPrecondition: a file that cannot be written. A gnuplot that fails or hangs is a
// note, not an error.
absl::StatusOr<Report> WriteFigures(const std::string& directory,
                                    const std::vector<Figure>& figures, const Options& options);
inline absl::StatusOr<Report> WriteFigures(const std::string& directory,
                                           const std::vector<Figure>& figures) {
  return WriteFigures(directory, figures, Options());
}

// The texts of NAME.dat and NAME.gp.
std::string DataText(const Figure& figure);
std::string ScriptText(const Figure& figure, const Options& options);

}  // namespace polyreme::plot
