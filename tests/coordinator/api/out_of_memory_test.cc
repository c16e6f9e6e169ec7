// Memory that runs out at the N-th allocation of a request's life, for every N: no crash, an answer
// or a typed error, nothing left behind, and a next request that works.
#include <gtest/gtest.h>

#include <atomic>

#include "coordinator/engine/engine.h"
#include "coordinator/engine/null_link.h"
#include "tests/coordinator/api/api_fixture.h"
#include "tests/coordinator/api/failing_allocation.h"

namespace polyreme::api {
namespace {

// Workers that answer at once and come back in the next epoch.
class RecoveringLink final : public engine::WorkerLink {
 public:
  explicit RecoveringLink(const step::StepLimits& limits) : limits_(limits), workers_(limits) {}

  absl::Status Submit(const step::StepPlan& plan) override { return workers_->Submit(plan); }
  absl::StatusOr<step::StepResult> Await(StepId step, absl::Time deadline) override {
    return workers_->Await(step, deadline);
  }
  absl::StatusOr<Epoch> Recover(const absl::Status&) override {
    workers_.emplace(limits_);
    ++num_recoveries;
    return Epoch{1 + num_recoveries};
  }
  void Abort(Epoch epoch) noexcept override { workers_->Abort(epoch); }

  std::atomic<int64_t> num_recoveries = 0;

 private:
  const step::StepLimits limits_;
  std::optional<engine::NullLink> workers_;
};

class OutOfMemoryTest : public ApiTest {
 protected:
  static engine::EngineOptions Options() {
    engine::EngineOptions options;
    options.limits = {.num_slots = 4,
                      .num_blocks = 64,
                      .tokens_per_block = 4,
                      .max_step_tokens = 64,
                      .max_step_samples = 64,
                      .max_model_len = 200,
                      .vocabulary = 262,
                      .max_steps_in_flight = 2};
    options.max_num_seqs = 4;
    options.max_num_batched_tokens = 64;
    options.max_waiting = 8;
    options.seed = 1;
    return options;
  }

  OutOfMemoryTest()
      : link_(Options().limits),
        engine_(Options(), TestModel().limits, link_, *tokenizer_, clock_, metrics_),
        engine_backend_(engine_) {
    SpareThisThread();
    engine_.Start();
    const PublicServerParts parts{.backend = engine_backend_,
                                  .tokenizer = *tokenizer_,
                                  .chat_template = &*chat_,
                                  .model = TestModel(),
                                  .metrics = metrics_,
                                  .clock = clock_};
    absl::StatusOr<std::unique_ptr<PublicServer>> server = PublicServer::Start({}, parts);
    CHECK(server.ok(), "{}", Message(server.status()));
    server_ = *std::move(server);
    port_ = server_->bound_port();
  }
  ~OutOfMemoryTest() override {
    server_.reset();
    engine_.Stop();
  }

  // Whether nobody runs, waits or is queued, soon.
  bool IsEmptySoon() {
    const absl::Time deadline = MonotonicNow() + absl::Seconds(10);
    while (MonotonicNow() < deadline) {
      const std::string metrics = metrics_.Render();
      const engine::EngineHealth health = engine_.health();
      const bool is_empty = health.num_running == 0 && health.num_waiting == 0;
      if (is_empty && health.serving &&
          metrics.find("polyreme_kv_cache_usage") != std::string::npos) {
        return true;
      }
    }
    return false;
  }

  // One request after another, each with a failure one allocation later, until one has none.
  void FailEach(const std::string& request, const std::string& done) {
    int64_t num_told = 0;
    int64_t num_closed = 0;
    int64_t num_done = 0;
    for (int64_t n = 0;; ++n) {
      ASSERT_LT(n, 100000);
      FailAllocation(n);
      const absl::Time begin = MonotonicNow();
      const RawResponse response = Exchange(port_, request);
      // A client that waits gives up later.
      EXPECT_LT(MonotonicNow() - begin, absl::Seconds(9)) << "nobody answered: allocation " << n;
      const bool has_struck = FailNoAllocation();
      const bool is_done = response.code == 200 && response.body.find(done) != std::string::npos;
      if (is_done) ++num_done;
      if (response.code == 0) ++num_closed;
      if (!is_done && response.code != 0) {
        ++num_told;
        EXPECT_NE(response.body.find("out of memory"), std::string::npos)
            << "allocation " << n << ": " << response.code << " " << response.body;
      }
      ASSERT_TRUE(IsEmptySoon()) << "after allocation " << n
                                 << " failed: " << engine_.health().reason;
      const RawResponse next = Exchange(port_, request);
      ASSERT_EQ(next.code, 200) << "after allocation " << n << " failed: " << next.body;
      ASSERT_NE(next.body.find(done), std::string::npos) << next.body;
      if (HasFailure()) return;
      if (has_struck) continue;
      EXPECT_TRUE(is_done);
      fmt::print("{} allocations: {} answered, {} told, {} closed; {} epochs\n", n, num_done,
                 num_told, num_closed, link_.num_recoveries.load());
      EXPECT_GT(n, 100);
      EXPECT_GT(num_told, n / 10);
      return;
    }
  }

  RecoveringLink link_;
  engine::Engine engine_;
  EngineBackend engine_backend_;
};

TEST_F(OutOfMemoryTest, AtAnyAllocationOfACompletionEndsAtMostThatRequest) {
  FailEach(PostJson("/v1/completions", R"({"prompt":"ab c","max_tokens":5,"ignore_eos":true,)"
                                       R"("n":2,"stop":["zzz"],"logprobs":1})"),
           "usage");
}

TEST_F(OutOfMemoryTest, AtAnyAllocationOfAChatStreamEndsAtMostThatRequest) {
  FailEach(PostJson("/v1/chat/completions",
                    R"({"messages":[{"role":"user","content":"hello"}],"max_tokens":4,)"
                    R"("ignore_eos":true,"stream":true})"),
           "[DONE]");
}

}  // namespace
}  // namespace polyreme::api
