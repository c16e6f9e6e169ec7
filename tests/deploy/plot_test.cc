#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <limits>

#include "deploy/plot/gnuplot.h"
#include "parallel/base/file.h"

namespace polyreme::plot {
namespace {

using ::testing::HasSubstr;

Figure Curves() {
  Figure figure;
  figure.name = "decode";
  figure.title = "it's 'decode'";
  figure.log_x = true;
  figure.series = {{"one", {1, 2, 4}, {10, 20, 40}},
                   {"two", {1, 2}, {5, std::numeric_limits<double>::quiet_NaN()}}};
  figure.levels = {{"at most", 50}};
  return figure;
}

Figure Bars() {
  Figure figure;
  figure.name = "memory";
  figure.kind = Figure::Kind::kStackedBars;
  figure.categories = {"tp1", "tp2"};
  figure.series = {{"weights", {}, {70, 35}}, {"cache", {}, {5, 40}}};
  figure.levels = {{"card", 80}};
  return figure;
}

std::string NewFolder(const std::string& name) {
  const std::string folder = testing::TempDir() + "/polyreme-plot-" + name;
  std::filesystem::remove_all(folder);
  return folder;
}

std::string Script(const std::string& folder, const std::string& text) {
  std::filesystem::create_directories(folder);
  const std::string path = folder + "/fake-gnuplot";
  std::ofstream(path) << "#!/bin/sh\n" << text << "\n";
  chmod(path.c_str(), 0755);
  return path;
}

bool IsThere(const std::string& folder, const std::string& name) {
  return std::filesystem::exists(folder + "/" + name);
}

TEST(Gnuplot, WritesEachSeriesAsABlockAndGapsAsMissing) {
  EXPECT_EQ(DataText(Curves()),
            "# 'it''s ''decode'''\n# 'one'\n1 10\n2 20\n4 40\n\n\n# 'two'\n1 5\n2 NaN\n\n\n");
  EXPECT_EQ(DataText(Bars()), "# ''\n\"tp1\" 70 5\n\"tp2\" 35 40\n");
}

TEST(Gnuplot, QuotesTitlesSoThatNothingInThemIsACommand) {
  Figure figure = Curves();
  figure.title = "a'; system('x')\nquit";
  const std::string script = ScriptText(figure, Options());
  EXPECT_THAT(script, HasSubstr("set title 'a''; system(''x'') quit' noenhanced\n"));
}

TEST(Gnuplot, WithoutItTheFilesAreThereAndOneLineSaysHow) {
  const std::string folder = NewFolder("without");
  const auto report =
      WriteFigures(folder, {Curves(), Bars()}, {.gnuplot = "no-such-gnuplot-anywhere"});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(report->drawn);
  EXPECT_THAT(report->note, HasSubstr("run `gnuplot *.gp` in " + folder));
  for (const char* name : {"decode.dat", "decode.gp", "memory.dat", "memory.gp"}) {
    EXPECT_TRUE(IsThere(folder, name)) << name;
  }
}

TEST(Gnuplot, ThatFailsOrHangsIsANote) {
  const std::string folder = NewFolder("bad");
  const auto failing = WriteFigures(folder, {Curves()}, {.gnuplot = Script(folder, "exit 3")});
  ASSERT_TRUE(failing.ok()) << failing.status();
  EXPECT_FALSE(failing->drawn);
  EXPECT_THAT(failing->note, HasSubstr("ended with code 3"));
  const auto hanging = WriteFigures(
      folder, {Curves()},
      {.gnuplot = Script(folder, "exec tail -f /dev/null"), .patience = absl::Milliseconds(50)});
  ASSERT_TRUE(hanging.ok()) << hanging.status();
  EXPECT_THAT(hanging->note, HasSubstr("did not end within"));
}

TEST(Gnuplot, RefusesFiguresThatCannotBeDrawn) {
  Figure odd = Curves();
  odd.series[0].y.pop_back();
  EXPECT_THAT(Message(WriteFigures(NewFolder("x"), {odd}).status()),
              HasSubstr("'one': expected 3 values, got 2"));
  Figure outside = Curves();
  outside.name = "../decode";
  EXPECT_TRUE(absl::IsInvalidArgument(WriteFigures(NewFolder("x"), {outside}).status()));
  Figure empty = Curves();
  empty.series.clear();
  EXPECT_TRUE(absl::IsInvalidArgument(WriteFigures(NewFolder("x"), {empty}).status()));
}

TEST(Gnuplot, DrawsBothKindsAsSvgAndPng) {
  const std::string folder = NewFolder("drawn");
  const auto report = WriteFigures(folder, {Curves(), Bars()});
  ASSERT_TRUE(report.ok()) << report.status();
  if (report->note.starts_with("no gnuplot")) GTEST_SKIP() << report->note;
  EXPECT_TRUE(report->drawn) << report->note;
  for (const char* name : {"decode.svg", "memory.svg", "decode.png", "memory.png"}) {
    ASSERT_TRUE(IsThere(folder, name)) << name;
    EXPECT_GT(std::filesystem::file_size(folder + "/" + name), 1000u) << name;
  }
}

}  // namespace
}  // namespace polyreme::plot
