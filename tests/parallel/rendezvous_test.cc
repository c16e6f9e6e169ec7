#include "parallel/launch/rendezvous.h"

#include <gtest/gtest.h>

#include <thread>

#include "parallel/base/clock.h"
#include "parallel/base/limits.h"
#include "parallel/launch/job_token.h"

namespace polyreme::launch {
namespace {

absl::Time Soon() {
  return MonotonicNow() + absl::Seconds(20);
}

TEST(Rendezvous, AValueIsThereForAllWhoWaitBeforeAndAfter) {
  InMemoryRendezvous meet;
  const std::jthread early([&] { EXPECT_EQ(*meet.Wait("key", Soon()), "value"); });
  ASSERT_TRUE(meet.Put("key", "value").ok());
  EXPECT_EQ(*meet.Wait("key", Soon()), "value");
  EXPECT_EQ(*meet.Wait("key", absl::InfinitePast()), "value");
}

TEST(Rendezvous, AWaitEndsAtItsDeadline) {
  InMemoryRendezvous meet;
  const auto value = meet.Wait("key", MonotonicNow() + absl::Milliseconds(5));
  EXPECT_TRUE(absl::IsDeadlineExceeded(value.status())) << value.status().ToString();
}

TEST(Rendezvous, AKeyKeepsItsFirstValue) {
  InMemoryRendezvous meet;
  ASSERT_TRUE(meet.Put("key", "value").ok());
  EXPECT_TRUE(meet.Put("key", "value").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(meet.Put("key", "other")));
  EXPECT_EQ(*meet.Wait("key", Soon()), "value");
}

TEST(Rendezvous, IsBounded) {
  InMemoryRendezvous meet;
  const auto bytes = [](int64_t n) { return std::string(static_cast<size_t>(n), 'x'); };
  EXPECT_TRUE(absl::IsInvalidArgument(meet.Put("", "value")));
  EXPECT_TRUE(absl::IsInvalidArgument(meet.Put(bytes(limits::kMaxMeetingKeyBytes + 1), "value")));
  EXPECT_TRUE(absl::IsResourceExhausted(meet.Put("key", bytes(limits::kMaxMeetingValueBytes + 1))));
  for (int64_t i = 0; i < limits::kMaxMeetingKeys; ++i) {
    ASSERT_TRUE(meet.Put(std::to_string(i), "value").ok());
  }
  EXPECT_TRUE(absl::IsResourceExhausted(meet.Put("one more", "value")));
}

TEST(Rendezvous, ForgetsAnEpochAndMakesRoom) {
  InMemoryRendezvous meet;
  for (const char* key : {"epoch/1/a", "epoch/1/b", "epoch/10/a", "epoch/2/a"}) {
    ASSERT_TRUE(meet.Put(key, "old").ok());
  }
  meet.Forget("epoch/1/");
  EXPECT_TRUE(meet.Put("epoch/1/a", "new").ok());
  EXPECT_TRUE(meet.Put("epoch/1/b", "new").ok());
  EXPECT_EQ(*meet.Wait("epoch/10/a", Soon()), "old");
  EXPECT_EQ(*meet.Wait("epoch/2/a", Soon()), "old");
}

TEST(Rendezvous, CloseEndsAllWaits) {
  InMemoryRendezvous meet;
  const std::jthread waiting(
      [&] { EXPECT_TRUE(absl::IsCancelled(meet.Wait("key", Soon()).status())); });
  meet.Close(Cancelled("done"));
  EXPECT_TRUE(absl::IsCancelled(meet.Put("key", "value")));
  EXPECT_TRUE(absl::IsCancelled(meet.Wait("key", Soon()).status()));
}

TEST(JobToken, IsNewEachTimeAndLong) {
  const std::string token = MakeJobToken();
  EXPECT_EQ(token.size(), 64u);
  EXPECT_NE(token, MakeJobToken());
}

TEST(Rendezvous, AFenceEndsWaitsAndRefusesWhatBelongsToAnOldEpoch) {
  InMemoryRendezvous meet;
  ASSERT_TRUE(meet.Put("epoch/1/a", "x").ok());
  const std::jthread waiter([&] {
    EXPECT_EQ(meet.Wait("epoch/1/b", Soon()).status().code(), absl::StatusCode::kUnavailable);
  });
  meet.Fence("epoch/1/", Unavailable("lost"));
  EXPECT_EQ(meet.Wait("epoch/1/a", Soon()).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(meet.Put("epoch/1/c", "x").code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(meet.Put("epoch/10/a", "x").ok());
  EXPECT_EQ(*meet.Wait("epoch/10/a", Soon()), "x");
}

TEST(JobToken, AProofDependsOnTokenRoleAndTranscript) {
  const Nonce nonce = MakeNonce();
  const Proof proof = Prove("token", "role", nonce);
  EXPECT_TRUE(SameProof(proof, Prove("token", "role", nonce)));
  EXPECT_FALSE(SameProof(proof, Prove("Token", "role", nonce)));
  EXPECT_FALSE(SameProof(proof, Prove("token", "rolf", nonce)));
  EXPECT_FALSE(SameProof(proof, Prove("token", "role", MakeNonce())));
}

}  // namespace
}  // namespace polyreme::launch
