// SIGTERM: no new requests, those that run may finish within the grace, the rest ends with a typed
// error, and the program has ended before the grace has.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <string>

#include "parallel/base/clock.h"
#include "tests/coordinator/api/raw_client.h"
#include "tests/e2e/launched_cluster.h"

namespace polyreme::e2e {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string StreamOf(int max_tokens, int n) {
  return api::PostJson("/v1/completions",
                       fmt::format(R"({{"prompt":"def f(","max_tokens":{},"n":{},"stream":true,)"
                                   R"("ignore_eos":true,"temperature":0.8,"seed":1}})",
                                   max_tokens, n));
}

// What a client that is still being answered gets after SIGTERM, and how long the program took.
struct End {
  std::string stream;
  absl::Duration took;
};
End TermDuring(const std::string& request, const std::string& grace) {
  Cluster cluster = StartCluster({}, {"-tp", "2", "--shutdown-timeout", grace});
  if (cluster.port == 0) return {};
  api::RawClient client(cluster.port);
  client.Send(request);
  client.ReadUntil("data: ");
  const absl::Time begin = MonotonicNow();
  cluster.program->Signal(SIGTERM);
  End end;
  end.stream = client.ReadUntil("data: [DONE]");
  EXPECT_EQ(cluster.program->WaitForExit(absl::Seconds(60)), 0) << cluster.program->output();
  end.took = MonotonicNow() - begin;
  std::printf("grace %s s: ended after %.2f s\n", grace.c_str(), absl::ToDoubleSeconds(end.took));
  return end;
}

constexpr char kCutShort[] = "\"type\":\"ServiceUnavailableError\"";

TEST(Drain, WithoutGraceEverythingEndsAtOnceWithAnErrorEvent) {
  const End end = TermDuring(StreamOf(2000, 8), "0");
  EXPECT_THAT(end.stream, HasSubstr(kCutShort));
  EXPECT_THAT(end.stream, HasSubstr("data: [DONE]"));
  EXPECT_LE(end.took, absl::Seconds(20));
}

// The bounds on times are for a machine that does other things as well: what was measured is
// printed.
TEST(Drain, WhatOutlastsAShortGraceEndsWithAnErrorEvent) {
  const End end = TermDuring(StreamOf(2000, 8), "1");
  EXPECT_THAT(end.stream, HasSubstr(kCutShort));
  EXPECT_THAT(end.stream, HasSubstr("data: [DONE]"));
  EXPECT_LE(end.took, absl::Seconds(20));
}

TEST(Drain, WhatFitsIntoALongGraceFinishesAndNobodyWaitsForTheRestOfIt) {
  const End end = TermDuring(StreamOf(200, 1), "30");
  EXPECT_THAT(end.stream, HasSubstr("\"finish_reason\":\"length\""));
  EXPECT_THAT(end.stream, Not(HasSubstr("error")));
  EXPECT_LT(end.took, absl::Seconds(30));
}

TEST(Drain, NewRequestsAreTurnedAwayAndConnectionsClosed) {
  Cluster cluster = StartCluster({}, {"-tp", "2", "--shutdown-timeout", "10"});
  ASSERT_NE(cluster.port, 0);
  api::RawClient kept(cluster.port);
  kept.Send(api::Get("/health"));
  ASSERT_EQ(kept.Read()->code, 200);
  api::RawClient running(cluster.port);
  running.Send(StreamOf(2000, 4));
  running.ReadUntil("data: ");
  cluster.program->Signal(SIGTERM);
  const absl::Time begin = MonotonicNow();
  const std::string one_more = api::PostJson("/v1/completions", R"({"prompt":"x","max_tokens":1})");
  api::RawResponse refused;
  do {
    refused = api::Exchange(cluster.port, one_more);
  } while (refused.code == 200);
  EXPECT_EQ(refused.code, 503) << refused.body;
  EXPECT_EQ(refused.Header("connection"), "close");
  EXPECT_EQ(refused.Header("retry-after"), "1");
  kept.Send(api::Get("/health"));
  const std::optional<api::RawResponse> health = kept.Read();
  ASSERT_TRUE(health.has_value());
  EXPECT_EQ(health->code, 503);
  EXPECT_THAT(health->body, HasSubstr("shutting down"));
  EXPECT_EQ(health->Header("connection"), "close");
  EXPECT_THAT(running.ReadUntil("data: [DONE]"), HasSubstr("data: [DONE]"));
  EXPECT_EQ(cluster.program->WaitForExit(absl::Seconds(30)), 0) << cluster.program->output();
  const absl::Duration took = MonotonicNow() - begin;
  std::printf("grace 10 s: ended after %.2f s\n", absl::ToDoubleSeconds(took));
  EXPECT_LT(took, absl::Seconds(30)) << "10 on a machine that is not loaded";
}

}  // namespace
}  // namespace polyreme::e2e
