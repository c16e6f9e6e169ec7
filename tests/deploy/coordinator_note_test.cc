// What one coordinator leaves to the next.
#include "deploy/cli/coordinator_note.h"

#include <gtest/gtest.h>

namespace polyreme::cli {
namespace {

TEST(CoordinatorNote, SaysToTheNextWhatTheLastKnew) {
  CoordinatorNote note{.cluster_address = "10.0.0.1:2345",
                       .incarnation = 3,
                       .epoch = Epoch{17},
                       .http_port = 8000,
                       .grpc_port = 8001,
                       .losses = {absl::FromUnixMillis(12), absl::FromUnixMillis(1890000000123)}};
  const absl::StatusOr<CoordinatorNote> read = CoordinatorNote::Decode(note.Encode());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->cluster_address, note.cluster_address);
  EXPECT_EQ(read->incarnation, 3);
  EXPECT_EQ(read->epoch, Epoch{17});
  EXPECT_EQ(read->http_port, 8000);
  EXPECT_EQ(read->grpc_port, 8001);
  EXPECT_EQ(read->losses, note.losses);
}

TEST(CoordinatorNote, StaysOneShortLineHoweverManyLossesThereWere) {
  CoordinatorNote note;
  note.cluster_address = std::string(255, 'h') + ":65535";
  for (int i = 0; i < 1000; ++i) note.losses.push_back(absl::FromUnixMillis(1890000000000 + i));
  const std::string line = note.Encode();
  EXPECT_LE(line.size(), 1024u);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const absl::StatusOr<CoordinatorNote> read = CoordinatorNote::Decode(line);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->losses.back(), note.losses.back());
}

TEST(CoordinatorNote, AnythingElseIsRefused) {
  for (const char* line : {"", "[]", "{}", "127.0.0.1:1 token",
                           R"({"cluster":"a:1","incarnation":0,"epoch":1,"http":0,"grpc":0,)"
                           R"("losses":[]})",
                           R"({"cluster":"a:1","incarnation":1,"epoch":1,"http":70000,"grpc":0,)"
                           R"("losses":[]})",
                           R"({"cluster":"a:1","incarnation":1,"epoch":1,"http":0,"grpc":0,)"
                           R"("losses":["x"]})"}) {
    EXPECT_FALSE(CoordinatorNote::Decode(line).ok()) << line;
  }
}

}  // namespace
}  // namespace polyreme::cli
