// One thread of a process hangs while all others, the one that beats included, go on: its agent
// finds it by what does not get on, and replaces the process.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/coordinator/api/raw_client.h"
#include "tests/e2e/launched_cluster.h"
#include "tests/e2e/stories.h"

namespace polyreme::e2e {
namespace {

using ::testing::HasSubstr;

class HangingThread : public testing::Test {
 protected:
  void Start(const std::string& thread, const std::vector<std::string>& arguments) {
    cluster_ = StartCluster({}, arguments, kDemoModel, Environment(thread));
    ASSERT_NE(cluster_.port, 0);
    want_ = Tell(cluster_);
  }
  Program::Environment Environment(const std::string& thread) const {
    return {{"LD_PRELOAD", POLYREME_HANG_PRELOAD},
            {"POLYREME_TEST_HANG_THREAD", thread},
            {"POLYREME_TEST_HANG_FILE", file()}};
  }

  // The next thread of that name hangs.
  void PlantHang() { std::ofstream(file()) << "hang\n"; }
  void WaitUntilItHangs() {
    EXPECT_TRUE(WaitUntil(absl::Seconds(20), [&] { return !std::filesystem::exists(file()); }))
        << "nobody hung\n"
        << cluster_.program->output();
  }

  Traces traces_;
  Cluster cluster_;
  std::vector<Story> want_;

 private:
  std::string file() const { return traces_.directory() + "/hang"; }
};

TEST_F(HangingThread, ACoordinatorWhoseEngineHangsInAStreamIsReplaced) {
  ASSERT_NO_FATAL_FAILURE(Start("engine", {"-tp", "2"}));
  Telling telling(cluster_, RequestsThatDecode());
  telling.WaitUntilEachAnswers();
  PlantHang();
  WaitUntilItHangs();
  EXPECT_TRUE(
      cluster_.program->WaitForLine("the engine thread has not come round", absl::Seconds(20)))
      << cluster_.program->output();
  EXPECT_TRUE(cluster_.program->WaitForLine(") hangs: it has given no sign", absl::Seconds(20)))
      << cluster_.program->output();
  EXPECT_TRUE(
      cluster_.program->WaitForLine("incarnation 2 of the coordinator: epoch", absl::Seconds(30)))
      << cluster_.program->output();
  EXPECT_TRUE(
      WaitUntil(absl::Seconds(20), [&] { return cluster_.program->Count("ready: serving") == 2; }));
  EXPECT_EQ(Tell(cluster_), want_) << cluster_.program->output();
  EXPECT_EQ(cluster_.program->Count("weights: "), 2) << "the workers keep theirs";
  EXPECT_EQ(cluster_.Stop(), 0) << cluster_.program->output();
}

TEST_F(HangingThread, AnIdleEngineThatHangsIsFoundToo) {
  ASSERT_NO_FATAL_FAILURE(Start("engine", {"-tp", "2"}));
  PlantHang();
  WaitUntilItHangs();
  EXPECT_TRUE(WaitUntil(absl::Seconds(60), [&] {
    return cluster_.program->Count("ready: serving") == 2;
  })) << cluster_.program->output();
  EXPECT_EQ(Tell(cluster_), want_) << cluster_.program->output();
  EXPECT_EQ(cluster_.Stop(), 0) << cluster_.program->output();
}

TEST_F(HangingThread, ACoordinatorThatHearsNobodyIsReplaced) {
  ASSERT_NO_FATAL_FAILURE(Start("http", {"-tp", "2"}));
  PlantHang();
  api::RawClient unheard(cluster_.port);
  unheard.Send(api::Get("/health"));
  WaitUntilItHangs();
  EXPECT_TRUE(cluster_.program->WaitForLine("an I/O thread of the HTTP server has not come round",
                                            absl::Seconds(30)))
      << cluster_.program->output();
  EXPECT_TRUE(WaitUntil(absl::Seconds(60), [&] {
    return cluster_.program->Count("ready: serving") == 2;
  })) << cluster_.program->output();
  EXPECT_EQ(Tell(cluster_), want_) << cluster_.program->output();
  EXPECT_EQ(cluster_.program->Count("weights: "), 2) << "the workers keep theirs";
  EXPECT_EQ(cluster_.Stop(), 0) << cluster_.program->output();
}

TEST_F(HangingThread, ARankThatComesBackAndNeverLoadsIsReplacedAgain) {
  ASSERT_NO_FATAL_FAILURE(Start("loader", {"-tp", "2"}));
  EXPECT_EQ(Tell(cluster_,
                 [&] {
                   PlantHang();
                   Strike(WorkerOf(*cluster_.program, 1), SIGKILL);
                   WaitUntilItHangs();
                 }),
            want_)
      << cluster_.program->output();
  EXPECT_THAT(cluster_.program->output(), HasSubstr("loading stands still"));
  EXPECT_THAT(cluster_.program->output(), HasSubstr("worker rank 1 (pid "));
  EXPECT_THAT(cluster_.program->output(), HasSubstr(") hangs: it has given no sign"));
  EXPECT_EQ(cluster_.program->Count("; waiting for all ranks"), 1) << "one epoch for all of it\n"
                                                                   << cluster_.program->output();
  EXPECT_EQ(cluster_.Stop(), 0) << cluster_.program->output();
}

TEST_F(HangingThread, OneThatNeverLoadsAtFirstEndsTheLaunchNamed) {
  PlantHang();
  const auto program = Program::Start(
      {POLYREME_BINARY, "serve", kDemoModel, "--port", "0", "-tp", "2"}, Environment("loader"));
  EXPECT_EQ(program->WaitForExit(absl::Seconds(90)), 1) << program->output();
  EXPECT_THAT(program->output(), HasSubstr("loading stands still"));
  EXPECT_THAT(program->output(), HasSubstr("polyreme serve: worker rank "));
}

}  // namespace
}  // namespace polyreme::e2e
