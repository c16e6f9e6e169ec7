#include "coordinator/engine/token_stream.h"

#include <gtest/gtest.h>

#include <thread>

#include "parallel/base/clock.h"

namespace polyreme::engine {
namespace {

OutputPiece Text(const std::string& text) {
  OutputPiece piece;
  piece.text = text;
  return piece;
}

absl::Time Soon() { return MonotonicNow() + absl::Seconds(30); }

TEST(TokenStream, GivesPiecesInOrderAndThenTheEnd) {
  TokenStream stream(4);
  EXPECT_FALSE(stream.Poll().ready);
  EXPECT_TRUE(stream.Push(Text("a")));
  EXPECT_TRUE(stream.Push(Text("b")));
  stream.Close(absl::OkStatus());
  EXPECT_FALSE(stream.Push(Text("c"))) << "closed";
  EXPECT_EQ((*stream.Next(Soon()))->text, "a");
  EXPECT_EQ((*stream.Poll().piece)->text, "b");
  EXPECT_EQ(*stream.Next(Soon()), std::nullopt);
  EXPECT_TRUE(stream.Poll().ready);
}

TEST(TokenStream, TheFirstReasonToCloseStays) {
  TokenStream stream(4);
  stream.Push(Text("a"));
  stream.Close(Unavailable("gone"));
  stream.Close(absl::OkStatus());
  EXPECT_TRUE(stream.Next(Soon()).ok()) << "what came before is still read";
  EXPECT_EQ(Message(stream.Next(Soon()).status()), "gone");
}

TEST(TokenStream, IsBoundedAndRefusesOnceCancelled) {
  int num_cancels = 0;
  TokenStream stream(1, [&] { ++num_cancels; });
  EXPECT_TRUE(stream.Push(Text("a")));
  EXPECT_FALSE(stream.Push(Text("b")));
  EXPECT_FALSE(stream.cancelled());
  stream.Cancel();
  stream.Cancel();
  EXPECT_EQ(num_cancels, 1);
  EXPECT_TRUE(stream.cancelled());
  stream.Poll();
  EXPECT_FALSE(stream.Push(Text("c")));
}

TEST(TokenStream, NextWaitsForThePieceAndNotForEver) {
  TokenStream stream(1);
  EXPECT_EQ(stream.Next(MonotonicNow()).status().code(), absl::StatusCode::kDeadlineExceeded);
  std::thread engine([&] { stream.Push(Text("a")); });
  EXPECT_EQ((*stream.Next(Soon()))->text, "a");
  engine.join();
}

TEST(TokenStream, NotifiesOfEachChangeAndOfWhatWasThereBefore) {
  TokenStream stream(4);
  int num_notified = 0;
  stream.SetNotify([&] { ++num_notified; });
  EXPECT_EQ(num_notified, 0);
  stream.Push(Text("a"));
  EXPECT_EQ(num_notified, 1);
  stream.SetNotify([&] { num_notified += 10; });
  EXPECT_EQ(num_notified, 11);
  stream.Close(absl::OkStatus());
  EXPECT_EQ(num_notified, 21);
  stream.SetNotify(nullptr);
}

}  // namespace
}  // namespace polyreme::engine
