// A question in a process of its own: the answer comes back, and nothing else does.
#include "deploy/cli/run_apart.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

namespace polyreme::cli {
namespace {

using testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(30);

long NumThreads() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return std::distance(begin(tasks), end(tasks));
}

TEST(RunApart, TheAnswerComesBackWithItsCodeAndMessage) {
  EXPECT_TRUE(RunApart([] { return absl::OkStatus(); }, kPatience).ok());
  const absl::Status status = RunApart([] { return NotFound("no GPU {}", 7); }, kPatience);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Message(status), "no GPU 7");
}

TEST(RunApart, ThreadsThatItMakesAreNotOurs) {
  const long before = NumThreads();
  int ours = 1;
  const absl::Status status = RunApart(
      [&] {
        std::thread([] { pause(); }).detach();
        ours = 2;
        return FailedPrecondition("{} threads", NumThreads());
      },
      kPatience);
  EXPECT_THAT(Message(status), HasSubstr("2 threads"));
  EXPECT_EQ(ours, 1);
  EXPECT_EQ(NumThreads(), before);
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1) << "a child is left";
}

TEST(RunApart, AQuestionThatHangsOrDiesIsAnError) {
  const auto hang = [] {
    for (;;) pause();
    return absl::OkStatus();
  };
  EXPECT_EQ(RunApart(hang, absl::Milliseconds(50)).code(), absl::StatusCode::kDeadlineExceeded);
  const auto die = [] {
    raise(SIGKILL);
    return absl::OkStatus();
  };
  EXPECT_THAT(Message(RunApart(die, kPatience)), HasSubstr("killed by signal 9"));
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1) << "a child is left";
}

TEST(RunApart, AMessageTooLongForThePipeIsCut) {
  const absl::Status status =
      RunApart([] { return Internal("{}", std::string(1 << 20, 'x')); }, kPatience);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(Message(status).find_first_not_of('x'), std::string::npos);
  EXPECT_GT(Message(status).size(), 1000u);
}

}  // namespace
}  // namespace polyreme::cli
