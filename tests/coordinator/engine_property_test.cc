// What a client receives never depends on company, budgets, pipeline depth, preemption or a
// recovery.
#include <gtest/gtest.h>

#include <random>

#include "tests/coordinator/engine_harness.h"

namespace polyreme::engine {
namespace {

constexpr uint64_t kSeeds = 60;
constexpr int kRequests = 8;

struct Outcome {
  std::string text;
  std::vector<TokenId> tokens;
  FinishReason finish = FinishReason::kNone;
  std::optional<std::string> stop_string;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

Outcome OutcomeOf(TokenStream& stream) {
  Received received;
  ReadNow(stream, received);
  EXPECT_TRUE(received.ended);
  EXPECT_TRUE(received.status.ok()) << Message(received.status);
  if (received.pieces.empty()) return {};
  return {received.text, received.tokens, received.finish, received.pieces.back().stop_string};
}

class Company {
 public:
  explicit Company(uint64_t seed) : random_(seed) {
    for (int i = 0; i < kRequests; ++i) {
      texts_.push_back(RandomText(Between(0, 40)));
      requests_.push_back(RandomRequest(static_cast<TokenId>('A' + i)));
    }
  }

  std::vector<Outcome> Alone() {
    std::vector<Outcome> outcomes;
    for (int i = 0; i < kRequests; ++i) {
      CoreHarness h;
      h.link.Say('A' + i, texts_[static_cast<size_t>(i)]);
      const auto stream = h.Submit(requests_[static_cast<size_t>(i)]);
      h.RunToEnd();
      outcomes.push_back(OutcomeOf(*stream));
    }
    return outcomes;
  }

  std::vector<Outcome> Together() {
    CoreHarness h(RandomOptions());
    std::vector<std::shared_ptr<TokenStream>> streams;
    int64_t epoch = 1;
    for (int i = 0; i < kRequests || !h.core->idle();) {
      if (i < kRequests && Between(0, 2) == 0) {
        h.link.Say('A' + i, texts_[static_cast<size_t>(i)]);
        streams.push_back(h.Submit(requests_[static_cast<size_t>(i++)]));
      }
      if (Between(0, 40) == 0) {
        h.link.Restart();
        h.core->Rewind(Epoch{++epoch});
      }
      const absl::Status status = h.core->RunOnce();
      EXPECT_TRUE(status.ok()) << Message(status);
      if (!status.ok()) return {};
    }
    h.RunToEnd();
    EXPECT_EQ(h.core->num_requests(), 0);
    EXPECT_EQ(h.core->num_free_blocks(), h.options.limits.num_blocks);
    EXPECT_EQ(h.signals->num_queued.load(), 0);
    std::vector<Outcome> outcomes;
    for (const auto& stream : streams) outcomes.push_back(OutcomeOf(*stream));
    return outcomes;
  }

 private:
  int Between(int low, int high) {
    return low + static_cast<int>(random_() % static_cast<uint64_t>(high - low + 1));
  }

  std::string RandomText(int num_characters) {
    static constexpr const char* kCharacters[] = {"a", "b", "c", ".", "é", "語", "\xFF"};
    std::string text;
    for (int i = 0; i < num_characters; ++i) text += kCharacters[Between(0, 6)];
    return text;
  }

  GenerateRequest RandomRequest(TokenId key) {
    GenerateRequest request = Ask(key, Between(1, 20), Between(1, 40));
    for (int i = Between(0, 3); i > 0; --i) {
      static constexpr const char* kStops[] = {"ab", "abc", "b.", "é", "cab.", "語語"};
      request.stop.push_back(kStops[Between(0, 5)]);
    }
    if (Between(0, 3) == 0) request.stop_token_ids = {'.'};
    request.min_tokens = Between(0, std::min(request.max_tokens, 5));
    request.include_stop_str_in_output = Between(0, 1) == 0;
    request.ignore_eos = Between(0, 4) == 0;
    return request;
  }

  EngineOptions RandomOptions() {
    EngineOptions options = SmallEngine();
    options.stages = Between(1, 3);
    options.limits.max_steps_in_flight = options.stages + 1;
    options.limits.tokens_per_block = Between(2, 8);
    options.limits.num_blocks = 64 / options.limits.tokens_per_block + Between(0, 8);
    options.max_num_seqs = Between(1, 8);
    options.max_num_batched_tokens = Between(1, 32);
    return options;
  }

  std::mt19937_64 random_;
  std::vector<std::string> texts_;
  std::vector<GenerateRequest> requests_;
};

TEST(EngineProperty, AClientReceivesTheSameAloneAndInAnyCompany) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Company company(seed);
    const std::vector<Outcome> alone = company.Alone();
    const std::vector<Outcome> together = company.Together();
    ASSERT_EQ(together.size(), alone.size());
    for (size_t i = 0; i < alone.size(); ++i) {
      EXPECT_EQ(together[i].text, alone[i].text) << "request " << i;
      EXPECT_TRUE(together[i] == alone[i]) << "request " << i;
    }
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace polyreme::engine
