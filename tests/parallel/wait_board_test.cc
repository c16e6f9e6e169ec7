// That a rank which waits for another says so, and stops saying so when something comes.
#include "parallel/comm/wait_board.h"

#include <gtest/gtest.h>
#include <poll.h>

#include "parallel/base/clock.h"
#include "tests/parallel/ranks.h"

namespace polyreme::comm {
namespace {

TEST(WaitBoard, SaysWhoIsWaitedForUntilSomethingHasCome) {
  WaitBoard board;
  EXPECT_FALSE(board.Read().waits);
  board.WaitFor(3);
  EXPECT_TRUE(board.Read().waits);
  EXPECT_EQ(board.Read().peer, 3);
  const int64_t before = board.Read().changes;
  board.Moved();
  EXPECT_FALSE(board.Read().waits);
  EXPECT_NE(board.Read().changes, before);
}

class WaitBoardOfATransport : public testing::TestWithParam<ProcessGroup::Kind> {};

TEST_P(WaitBoardOfATransport, ShowsAWaitInACollective) {
  WaitBoard board;
  RanksOptions options;
  options.kind = GetParam();
  options.shards = 2;
  options.adjust = [&](Rank self, ProcessGroup::Options& join) {
    if (self.value == 0) join.board = &board;
  };
  ExpectAllWell(options, [&](ProcessGroup& group, Lane& lane) {
    if (group.place().shard == 1) {
      const absl::Time deadline = MonotonicNow() + absl::Seconds(20);
      while (!board.Read().waits && MonotonicNow() < deadline) poll(nullptr, 0, 1);
      EXPECT_EQ(board.Read().peer, 1);
    }
    float x = 1;
    group.tensor().AllReduceSum(lane, {&x, DType::kF32, Shape{1}});
    EXPECT_EQ(x, 2);
  });
  EXPECT_FALSE(board.Read().waits);
}

INSTANTIATE_TEST_SUITE_P(Kinds, WaitBoardOfATransport,
                         testing::Values(ProcessGroup::Kind::kTcp,
                                         ProcessGroup::Kind::kSharedMemory));

}  // namespace
}  // namespace polyreme::comm
