// The load generator against a server whose delays are known.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "deploy/bench/http_client.h"
#include "deploy/bench/interrupt.h"
#include "deploy/bench/load.h"
#include "deploy/bench/openai_client.h"
#include "deploy/bench/samples.h"
#include "tests/deploy/fake_server.h"

namespace polyreme::bench {
namespace {

using ::testing::HasSubstr;
using Outcome = RequestRecord::Outcome;

constexpr int64_t kMs = 1'000'000;

OpenAiTarget TargetOf(const FakeServer& server) {
  OpenAiTarget target;
  target.url = *ParseHttpUrl(server.url());
  target.model = "fake";
  return target;
}

LoadResult RunAt(const FakeServer& server, std::vector<int64_t> times, int32_t concurrency,
                 int32_t max_tokens, int32_t num_threads = 1,
                 const std::function<void(const LoadProgress&)>& on_progress = {}) {
  const OpenAiTarget target = TargetOf(server);
  LoadOptions options;
  options.url = target.url;
  options.path = target.path();
  options.headers = target.headers();
  options.concurrency = concurrency;
  options.num_threads = num_threads;
  options.silence_deadline = absl::Seconds(20);
  options.deadline = absl::Seconds(60);
  std::vector<RequestSpec> specs;
  for (const int64_t time : times) {
    specs.push_back({.intended_ns = time,
                     .body = *GenerationBody(target, std::vector<TokenId>{1, 2, 3}, max_tokens)});
  }
  absl::StatusOr<LoadResult> result = RunLoad(options, std::move(specs), on_progress);
  EXPECT_TRUE(result.ok()) << result.status();
  return *std::move(result);
}

std::vector<int64_t> WhenThereIsRoom(int count) {
  return std::vector<int64_t>(static_cast<size_t>(count), RequestSpec::kWhenThereIsRoom);
}

// What the client says is what the server wrote down, whatever this machine does meanwhile: only
// the way between them lies in between.
TEST(Load, TimesAreThoseThatTheServerWroteDown) {
  FakeServerOptions options;
  options.when = [](int64_t request, int32_t chunk) {
    return (20 + request * 3 + chunk * (10 + request % 5)) * kMs;
  };
  const FakeServer server(options);
  const LoadResult result = RunAt(server, WhenThereIsRoom(40), 8, 12);
  const std::map<std::string, FakeServer::Served> served = server.served();
  std::vector<double> ttft_error, client_gaps, server_gaps;
  for (const RequestRecord& record : result.records) {
    ASSERT_EQ(record.outcome, Outcome::kDone) << record.error;
    EXPECT_EQ(record.num_chunks, 12);
    EXPECT_EQ(record.output_tokens, 12);
    EXPECT_TRUE(record.has_usage);
    EXPECT_EQ(record.prompt_tokens, 3);
    EXPECT_EQ(record.finish_reason, "length");
    const FakeServer::Served& truth = served.at(fmt::format("bench-{}", record.index));
    const double true_ttft =
        static_cast<double>(truth.chunks_ns[0] - truth.arrived_ns) / static_cast<double>(kMs);
    EXPECT_GE(record.ttft_ms(), true_ttft);
    ttft_error.push_back(record.ttft_ms() - true_ttft);
    for (size_t i = 0; i + 1 < truth.chunks_ns.size(); ++i) {
      server_gaps.push_back(static_cast<double>(truth.chunks_ns[i + 1] - truth.chunks_ns[i]) / 1e6);
      client_gaps.push_back(static_cast<double>(record.gaps_ns[i]) / 1e6);
    }
  }
  // The median is robust against a scheduler that lets a thread wait now and then.
  EXPECT_LT(Samples(ttft_error).median(), 5);
  EXPECT_NEAR(Samples(client_gaps).median(), Samples(server_gaps).median(), 0.12);
  EXPECT_NEAR(Samples(client_gaps).mean(), Samples(server_gaps).mean(), 0.12);
  EXPECT_GT(result.client.cpu_seconds, 0);
  EXPECT_EQ(server.num_connections(), 8);
}

TEST(Load, AClosedLoopHasNeverMoreUnderWayThanAsked) {
  for (const int32_t threads : {1, 2}) {
    FakeServerOptions options;
    options.when = [](int64_t, int32_t chunk) { return (chunk + 1) * 5 * kMs; };
    const FakeServer server(options);
    const LoadResult result = RunAt(server, WhenThereIsRoom(30), 3, 2, threads);
    std::vector<std::pair<int64_t, int>> changes;
    for (const RequestRecord& record : result.records) {
      ASSERT_EQ(record.outcome, Outcome::kDone);
      EXPECT_EQ(record.intended_ns, record.sent_ns);
      changes.emplace_back(record.sent_ns, 1);
      changes.emplace_back(record.end_ns, -1);
    }
    std::sort(changes.begin(), changes.end());
    int under_way = 0;
    int most = 0;
    for (const auto& [time, change] : changes) most = std::max(most, under_way += change);
    EXPECT_EQ(most, 3);
    EXPECT_EQ(server.num_connections(), 3);
  }
}

// Requests that find no room wait, and their waiting counts: the server below answers one in 20 ms,
// one is due every 5 ms, and only one may be under way.
TEST(Load, AnOpenLoopCountsFromTheIntendedTime) {
  FakeServerOptions options;
  options.when = [](int64_t, int32_t) { return 20 * kMs; };
  const FakeServer server(options);
  std::vector<int64_t> times;
  for (int i = 0; i < 20; ++i) times.push_back(i * 5 * kMs);
  const LoadResult result = RunAt(server, times, 1, 1);
  for (size_t i = 0; i < times.size(); ++i) {
    const RequestRecord& record = result.records[i];
    ASSERT_EQ(record.outcome, Outcome::kDone);
    EXPECT_EQ(record.intended_ns, times[i]);
    EXPECT_GE(record.latency_ms(), 20 + static_cast<double>(i) * 15 - 0.1) << i;
  }
  EXPECT_GE(result.client.late_max_ms, 19 * 15 - 0.1);
}

TEST(Load, AnOpenLoopSendsAtItsTimesAndWaitsForNobody) {
  FakeServerOptions options;
  options.when = [](int64_t, int32_t) { return 300 * kMs; };
  const FakeServer server(options);
  std::vector<int64_t> times;
  for (int i = 0; i < 40; ++i) times.push_back(i * 10 * kMs);
  const LoadResult result = RunAt(server, times, 0, 1, 2);
  std::vector<double> late;
  for (size_t i = 0; i < times.size(); ++i) {
    ASSERT_EQ(result.records[i].outcome, Outcome::kDone);
    EXPECT_EQ(result.records[i].intended_ns, times[i]);
    EXPECT_GE(result.records[i].sent_ns, times[i]);
    late.push_back(result.records[i].late_ms());
  }
  EXPECT_LT(Samples(late).median(), 10);
}

TEST(Load, ConnectionsThatTheServerClosesAreReplaced) {
  FakeServerOptions options;
  options.keeps_alive = false;
  const FakeServer server(options);
  const LoadResult result = RunAt(server, WhenThereIsRoom(10), 2, 3);
  for (const RequestRecord& record : result.records) {
    EXPECT_EQ(record.outcome, Outcome::kDone) << record.error;
  }
  EXPECT_EQ(server.num_connections(), 10);
}

TEST(Load, AStreamThatIsCutFailsAndTheOthersGoOn) {
  FakeServerOptions options;
  options.cuts = 2;
  const FakeServer server(options);
  const LoadResult result = RunAt(server, WhenThereIsRoom(6), 2, 3);
  int failed = 0;
  for (const RequestRecord& record : result.records) {
    if (record.outcome == Outcome::kDone) continue;
    ++failed;
    EXPECT_EQ(record.outcome, Outcome::kFailed);
    EXPECT_THAT(record.error, HasSubstr("ended within the answer"));
    EXPECT_EQ(record.num_chunks, 1);
  }
  EXPECT_EQ(failed, 1);
}

TEST(Load, WithoutUsageChunksAreCounted) {
  FakeServerOptions options;
  options.sends_usage = false;
  const FakeServer server(options);
  const LoadResult result = RunAt(server, WhenThereIsRoom(2), 1, 5);
  EXPECT_EQ(result.records[0].output_tokens, 5);
  EXPECT_FALSE(result.records[0].has_usage);
}

TEST(Load, NobodyThereIsAFailureOfEachRequest) {
  std::string url;
  int32_t port = 0;
  {
    const FakeServer server({});
    port = server.port();
  }
  OpenAiTarget target;
  target.url = *ParseHttpUrl(fmt::format("http://127.0.0.1:{}", port));
  LoadOptions options;
  options.url = target.url;
  options.path = target.path();
  std::vector<RequestSpec> specs(3);
  const absl::StatusOr<LoadResult> result = RunLoad(options, std::move(specs), {});
  ASSERT_TRUE(result.ok());
  for (const RequestRecord& record : result->records) {
    EXPECT_EQ(record.outcome, Outcome::kFailed);
    EXPECT_THAT(record.error, HasSubstr("Connection refused"));
  }
  const auto model = AskServer(target, "", absl::Seconds(5));
  EXPECT_TRUE(absl::IsUnavailable(model.status()));
  EXPECT_THAT(Message(model.status()), HasSubstr("Connection refused"));
}

TEST(Load, AnInterruptKeepsWhatWasMeasured) {
  const InterruptGuard guard;
  FakeServerOptions options;
  options.when = [](int64_t request, int32_t) { return request < 4 ? 0 : 60'000 * kMs; };
  const FakeServer server(options);
  bool raised = false;
  const LoadResult result =
      RunAt(server, WhenThereIsRoom(20), 4, 2, 1, [&](const LoadProgress& progress) {
        if (progress.done == 4 && progress.sent == 8 && !raised) {
          raised = true;
          raise(SIGINT);
        }
      });
  EXPECT_TRUE(result.interrupted);
  std::map<Outcome, int> counts;
  for (const RequestRecord& record : result.records) ++counts[record.outcome];
  EXPECT_EQ(counts[Outcome::kDone], 4);
  EXPECT_EQ(counts[Outcome::kCancelled], 4);
  EXPECT_EQ(counts[Outcome::kNotSent], 12);
}

TEST(AskServer, NamesWhatIsServedWhenTheModelIsNot) {
  const FakeServer server({});
  const OpenAiTarget target = TargetOf(server);
  EXPECT_EQ(AskServer(target, "", absl::Seconds(5))->max_model_len, 4096);
  EXPECT_EQ(AskServer(target, "fake", absl::Seconds(5))->id, "fake");
  const auto other = AskServer(target, "other", absl::Seconds(5));
  EXPECT_TRUE(absl::IsNotFound(other.status()));
  EXPECT_THAT(Message(other.status()), HasSubstr("'other' is not served"));
  EXPECT_THAT(Message(other.status()), HasSubstr("fake"));
}

TEST(AskServer, AWrongKeyIsTold) {
  FakeServerOptions options;
  options.api_key = "secret";
  const FakeServer server(options);
  OpenAiTarget target = TargetOf(server);
  EXPECT_THAT(Message(AskServer(target, "", absl::Seconds(5)).status()),
              HasSubstr("401: a key is needed"));
  target.api_key = "secret";
  EXPECT_TRUE(AskServer(target, "", absl::Seconds(5)).ok());
}

}  // namespace
}  // namespace polyreme::bench
