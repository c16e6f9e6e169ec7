// Memory that runs out at the n-th allocation of a request's life, for every n, while a neighbour
// is being served: a whole answer, a typed error or a closed connection, at once; at most one of
// the two is hurt; nothing is left behind; and the next request works.
#include "parallel/base/out_of_memory.h"

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <mutex>

#include "coordinator/engine/worker_link.h"
#include "tests/coordinator/api/engine_fixture.h"
#include "tests/coordinator/api/failing_allocation.h"
#include "tests/coordinator/fake_worker.h"

namespace polyreme::api {
namespace {

// A worker that checks every plan, draws what its cache's tokens say, and comes back in the next
// epoch. It plays another process: no allocation of it is counted.
class WorkerAside final : public engine::WorkerLink {
 public:
  explicit WorkerAside(const step::StepLimits& limits) : limits_(limits), worker_(limits) {}
  ~WorkerAside() override = default;

  absl::Status Submit(const step::StepPlan& plan) override {
    const SparedThread spared;
    ASSIGN_OR_RETURN(step::StepResult answer, worker_->Run(plan));
    answers_.push_back(std::move(answer));
    return absl::OkStatus();
  }
  absl::StatusOr<step::StepResult> Await(StepId step, absl::Time) override {
    const SparedThread spared;
    // A step takes its time: two requests at once are to meet.
    std::unique_lock lock(mutex_);
    never_.wait_for(lock, std::chrono::microseconds(50));
    if (answers_.empty() || answers_.front().id != step) return Internal("not the oldest step");
    step::StepResult answer = std::move(answers_.front());
    answers_.pop_front();
    return answer;
  }
  absl::StatusOr<Epoch> Recover(const absl::Status&) override {
    const SparedThread spared;
    worker_.emplace(limits_);
    answers_.clear();
    ++num_recoveries;
    return Epoch{1 + num_recoveries};
  }
  void Abort(Epoch) noexcept override {}

  std::atomic<int64_t> num_recoveries = 0;

 private:
  const step::StepLimits limits_;
  std::optional<sched::FakeWorker> worker_;
  std::deque<step::StepResult> answers_;
  std::mutex mutex_;
  std::condition_variable never_;
};

// All "token_ids" of an answer, one after another.
std::string TokensIn(std::string_view body) {
  constexpr std::string_view kKey = "\"token_ids\":[";
  std::string tokens;
  for (size_t at = body.find(kKey); at != std::string_view::npos; at = body.find(kKey, at)) {
    at += kKey.size();
    tokens += std::string(body.substr(at, body.find(']', at) - at)) + ",";
  }
  return tokens;
}

int64_t CountEntries(const char* directory) {
  int64_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(directory)) ++count;
  return count;
}

class OutOfMemoryTest : public EngineApiTest<WorkerAside> {
 protected:
  static constexpr absl::Duration kPromptly = absl::Seconds(5);

  OutOfMemoryTest() : EngineApiTest(/*num_blocks=*/64) {}

  // What a server without requests holds.
  struct Held {
    int64_t num_files = 0;
    int64_t num_threads = 0;
    bool is_all_cache_free = false;
    bool is_idle = false;
    friend bool operator==(const Held&, const Held&) = default;
  };
  Held HeldNow() {
    const engine::EngineHealth health = engine_.health();
    const std::string metrics = metrics_.Render();
    const size_t usage = metrics.find("\npolyreme_kv_cache_usage_perc{");
    return {.num_files = CountEntries("/proc/self/fd"),
            .num_threads = CountEntries("/proc/self/task"),
            .is_all_cache_free = metrics.substr(metrics.find("} ", usage), 4) == "} 0\n",
            .is_idle = health.serving && health.num_running == 0 && health.num_waiting == 0};
  }
  // What is held once nothing of it has changed for a while.
  Held Settled() {
    constexpr absl::Duration kCalm = absl::Milliseconds(300);
    Held held = HeldNow();
    absl::Time since = MonotonicNow();
    const absl::Time deadline = since + kPromptly;
    while (MonotonicNow() - since < kCalm && MonotonicNow() < deadline) {
      absl::SleepFor(absl::Milliseconds(10));
      if (const Held now = HeldNow(); now != held) {
        held = now;
        since = MonotonicNow();
      }
    }
    return held;
  }
  testing::AssertionResult ComesBackTo(const Held& start) {
    const absl::Time deadline = MonotonicNow() + kPromptly;
    Held now;
    do {
      now = HeldNow();
      if (now == start) return testing::AssertionSuccess();
    } while (MonotonicNow() < deadline);
    return testing::AssertionFailure()
           << now.num_files << " files (" << start.num_files << "), " << now.num_threads
           << " threads (" << start.num_threads << "), " << (now.is_all_cache_free ? "" : "not ")
           << "all cache free, " << (now.is_idle ? "" : "not ") << "idle; "
           << engine_.health().reason;
  }

  enum class End { kWhole, kTold, kClosed };
  static End EndOf(const std::optional<RawResponse>& response, const std::string& tokens) {
    if (!response.has_value()) return End::kClosed;
    if (response->body.find("\"error\":{") != std::string::npos) {
      const bool is_typed = response->body.find("out of memory") != std::string::npos &&
                            response->body.find("\"ServiceUnavailableError\"") != std::string::npos;
      EXPECT_TRUE(is_typed && (response->code == 503 || response->code == 200))
          << response->code << " " << response->body;
      return End::kTold;
    }
    EXPECT_EQ(response->code, 200) << response->body;
    EXPECT_EQ(TokensIn(response->body), tokens) << response->body;
    return End::kWhole;
  }

  // One round after another, with `count` failures that begin one allocation later each time, until
  // one has none. MakeRequest is given the round.
  template <class MakeRequest>
  void FailEach(int64_t count, MakeRequest make_request) {
    const SparedThread spared;
    const Held before = Settled();
    ASSERT_TRUE(before.is_idle && before.is_all_cache_free);
    const std::string neighbour_asks =
        PostJson("/v1/completions",
                 R"({"prompt":"neighbour","max_tokens":100,"ignore_eos":true,"stream":true,)"
                 R"("return_token_ids":true})");
    const std::string neighbour_tokens = TokensIn(Exchange(port_, neighbour_asks).body);
    const std::string tokens = TokensIn(Exchange(port_, make_request(-1)).body);
    ASSERT_FALSE(neighbour_tokens.empty() || tokens.empty());
    // The thread that keeps deadlines begins with the first one, and what was open for the start of
    // the worker, or for these two answers, closes when its threads come to it.
    const Held start = Settled();
    ASSERT_TRUE(start.is_idle && start.is_all_cache_free);
    EXPECT_LE(start.num_files, before.num_files);

    std::array<int64_t, 3> num_ends{};
    int64_t num_neighbours_hurt = 0;
    for (int64_t n = 0; n < 100000; ++n) {
      const int64_t recoveries_before = link_.num_recoveries;
      RawClient neighbour(port_, kPromptly);
      neighbour.Send(neighbour_asks);
      neighbour.ReadUntil("data: ");

      FailAllocation(n, count);
      const absl::Time begin = MonotonicNow();
      End end = End::kClosed;
      {
        RawClient client(port_, kPromptly);
        client.Send(make_request(n));
        end = EndOf(client.Read(), tokens);
      }
      EXPECT_LT(MonotonicNow() - begin, kPromptly / 2) << "nobody answered";
      const bool has_struck = FailNoAllocation();
      const End neighbours_end = EndOf(neighbour.Read(), neighbour_tokens);
      EXPECT_LT(MonotonicNow() - begin, kPromptly / 2) << "nobody answered the neighbour";
      neighbour.Close();

      ++num_ends[static_cast<size_t>(end)];
      if (neighbours_end != End::kWhole) ++num_neighbours_hurt;
      // The engine starts over only if its reserve is gone as well: one failure is not enough.
      const bool started_over = link_.num_recoveries != recoveries_before;
      EXPECT_FALSE(started_over && count == 1);
      EXPECT_TRUE(started_over || count > 1 || end == End::kWhole || neighbours_end == End::kWhole)
          << "one failure hurt two";
      EXPECT_TRUE(ComesBackTo(start));
      const RawResponse next = Exchange(port_, make_request(-2 - n));
      EXPECT_EQ(next.code, 200) << next.body;
      EXPECT_EQ(TokensIn(next.body), tokens);
      if (HasFailure()) {
        PrintWhereItFailed();
        FAIL() << "allocation " << n << ", " << count << " failed";
      }
      if (has_struck) continue;
      EXPECT_EQ(end, End::kWhole);
      ExpectNobodyIsCounted();
      fmt::print("{} allocations: {} whole, {} told, {} closed; {} neighbours hurt, {} epochs\n", n,
                 num_ends[0], num_ends[1], num_ends[2], num_neighbours_hurt,
                 link_.num_recoveries.load());
      EXPECT_GT(n, 100);
      EXPECT_GT(num_ends[1], n / 10);
      return;
    }
  }

  // As many choices as may wait are taken only when the count of those who wait is 0.
  void ExpectNobodyIsCounted() {
    const RawResponse all =
        Exchange(port_, PostJson("/v1/completions", R"({"prompt":"all","max_tokens":2,"n":8})"));
    EXPECT_EQ(all.code, 200) << all.body;
  }

  static std::string Completion(int64_t) {
    return PostJson("/v1/completions", R"({"prompt":"ab c","max_tokens":5,"ignore_eos":true,)"
                                       R"("n":2,"stop":["zzz"],"logprobs":1,)"
                                       R"("return_token_ids":true,"timeout":60})");
  }
  static std::string ChatStream(int64_t) {
    return PostJson("/v1/chat/completions",
                    R"({"messages":[{"role":"user","content":"hello"}],"max_tokens":4,)"
                    R"("ignore_eos":true,"stream":true,"return_token_ids":true})");
  }
  static std::string KeyedStream(int64_t round) {
    return PostJson("/v1/completions",
                    R"({"prompt":"again","max_tokens":4,"ignore_eos":true,"stream":true,)"
                    R"("return_token_ids":true})",
                    fmt::format("Idempotency-Key: round {}\r\n", round));
  }
};

TEST_F(OutOfMemoryTest, AtAnyAllocationOfACompletionEndsAtMostThatRequest) {
  FailEach(1, Completion);
}

TEST_F(OutOfMemoryTest, AtAnyAllocationOfAChatStreamEndsAtMostThatRequest) {
  FailEach(1, ChatStream);
}

TEST_F(OutOfMemoryTest, AtAnyAllocationOfAKeyedStreamEndsAtMostThatRequest) {
  FailEach(1, KeyedStream);
}

// The error's own memory is not there, nor what the reserve gave back.
TEST_F(OutOfMemoryTest, TwoFailuresInARowAreToldOrCloseTheConnection) {
  FailEach(2, ChatStream);
}

TEST(OutOfMemory, IsNoFaultOfAText) {
  const std::string text = R"({"a":["a string that is not short at all",{"b":1.5}],"c":null})";
  int64_t num_failed = 0;
  for (int64_t n = 0;; ++n) {
    FailAllocation(n);
    const absl::Status parsed = WithinMemory([&] { return Json::Parse(text).status(); });
    if (!FailNoAllocation()) break;
    EXPECT_EQ(parsed, OutOfMemory()) << "allocation " << n;
    ++num_failed;
  }
  EXPECT_GT(num_failed, 5);
}

TEST(MemoryReserve, IsDrawnOnByThoseWhoMayAndIsHeldAgain) {
  ASSERT_TRUE(MemoryReserve::Hold(1 << 20));
  const auto allocate = [] { ::operator delete(::operator new(100)); };
  FailAllocation(0);
  EXPECT_EQ(WithinMemory(allocate), OutOfMemory());
  EXPECT_TRUE(MemoryReserve::held());
  {
    const MemoryReserve::Access access(true);
    FailAllocation(0);
    EXPECT_TRUE(WithinMemory(allocate).ok());
    EXPECT_FALSE(MemoryReserve::held());
    FailAllocation(0);
    EXPECT_EQ(WithinMemory(allocate), OutOfMemory()) << "it is gone";
  }
  FailNoAllocation();
  EXPECT_TRUE(MemoryReserve::Hold(1 << 20));
  EXPECT_TRUE(MemoryReserve::held());
}

}  // namespace
}  // namespace polyreme::api
