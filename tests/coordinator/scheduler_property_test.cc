// Whatever the limits, each sequence gets the tokens it would get alone, each plan is one that a
// worker accepts, and no block is lost.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "tests/coordinator/scheduler_harness.h"

namespace polyreme::sched {
namespace {

constexpr uint64_t kSeeds = 8000;

// What a request gets when it runs alone and nothing limits it.
struct Outcome {
  std::vector<TokenId> output;
  std::vector<TokenId> scored;
  Finish finish = Finish::kNone;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

Outcome RunAlone(const SequenceOptions& request, int32_t vocabulary) {
  Outcome outcome;
  std::vector<TokenId> tokens = request.prompt;
  // Nothing is asked of the logits after the last token if nothing is to be drawn.
  const auto asked = tokens.end() - (request.stop.max_tokens == 0 ? 1 : 0);
  if (std::find(tokens.begin(), asked, FakeWorker::kPoison) != asked) {
    outcome.finish = Finish::kNotFinite;
    return outcome;
  }
  if (request.scores_prompt) outcome.scored.assign(tokens.begin() + 1, tokens.end());
  const int32_t room = request.stop.max_model_len - static_cast<int32_t>(tokens.size());
  const int32_t most = std::min(request.stop.max_tokens, room);
  if (most == 0) outcome.finish = Finish::kLength;
  while (outcome.finish == Finish::kNone) {
    const TokenId token = NextToken(tokens, vocabulary);
    tokens.push_back(token);
    outcome.output.push_back(token);
    const auto among = [&](const std::vector<TokenId>& ids) {
      return std::find(ids.begin(), ids.end(), token) != ids.end();
    };
    if (std::ssize(outcome.output) >= request.stop.min_tokens && among(request.stop.eos_tokens)) {
      outcome.finish = Finish::kEndOfSequence;
    } else if (std::ssize(outcome.output) >= request.stop.min_tokens &&
               among(request.stop.stop_tokens)) {
      outcome.finish = Finish::kStopToken;
    } else if (std::ssize(outcome.output) == most) {
      outcome.finish = Finish::kLength;
    }
  }
  return outcome;
}

class Story {
 public:
  explicit Story(uint64_t seed) : random_(seed), h_(RandomLimits()) {}
  const Scheduler& scheduler() const { return h_.scheduler; }

  void Run() {
    const int num_requests = Between(1, 24);
    int admitted = 0;
    for (int turn = 0; turn < 4000 && (admitted < num_requests || !expected_.empty()); ++turn) {
      switch (Between(0, 9)) {
        case 0:
        case 1:
          if (admitted < num_requests) Admit(++admitted);
          break;
        case 2:
          if (Between(0, 7) == 0) CancelOne();
          break;
        case 3:
          if (Between(0, 30) == 0) {
            h_.Rewind(Epoch{++epoch_});
            in_flight_.clear();
          }
          break;
        case 4:
        case 5:
        case 6:
          PlanOne();
          break;
        default:
          if (!h_.answers.empty())
            CommitOne();
          else
            PlanOne();
      }
      if (::testing::Test::HasFailure()) return;
    }
    EXPECT_TRUE(expected_.empty()) << expected_.size() << " sequences never ended";
    while (!h_.answers.empty()) EXPECT_TRUE(h_.Commit().empty());
    EXPECT_TRUE(h_.Idle());
    EXPECT_EQ(h_.blocks.num_free(), h_.blocks.num_blocks());
    EXPECT_EQ(h_.scheduler.num_running() + h_.scheduler.num_waiting(), 0);
  }

 private:
  int Between(int low, int high) {
    return static_cast<int>(low +
                            static_cast<int>(random_() % static_cast<uint64_t>(high - low + 1)));
  }

  SchedulerLimits RandomLimits() {
    SchedulerLimits limits;
    limits.stages = Between(1, 4);
    limits.max_num_seqs = Between(1, 8);
    limits.max_num_batched_tokens = Between(1, 24);
    limits.max_waiting = 64;
    limits.enable_prefix_caching = Between(0, 3) != 0;
    limits.step = {.num_slots = limits.max_num_seqs + Between(0, 2),
                   .num_blocks = 8,
                   .tokens_per_block = Between(1, 5),
                   .max_step_tokens = 24,
                   .max_step_samples = Between(1, 24),
                   .max_model_len = 48,
                   .vocabulary = 40,
                   .max_steps_in_flight = limits.stages + 1};
    return limits;
  }

  void Admit(int64_t id) {
    SequenceOptions request;
    request.id = SequenceId{id};
    const int32_t capacity = h_.limits.step.num_blocks * h_.limits.step.tokens_per_block;
    const int32_t length = Between(1, std::min(capacity, 40));
    // Half of them begin as another began, or went on.
    if (!texts_.empty() && Between(0, 1) == 0) {
      const auto& text =
          texts_[static_cast<size_t>(Between(0, static_cast<int>(texts_.size()) - 1))];
      const int32_t common = Between(0, std::min(length, static_cast<int32_t>(text.size())));
      request.prompt.assign(text.begin(), text.begin() + common);
    }
    while (std::ssize(request.prompt) < length) {
      const TokenId token = Between(0, 39);
      request.prompt.push_back(token == FakeWorker::kPoison && Between(0, 9) != 0 ? 14 : token);
    }
    request.stop.max_tokens = Between(0, std::min(capacity - length + 1, 30));
    request.stop.min_tokens = Between(0, request.stop.max_tokens);
    request.stop.max_model_len = h_.limits.step.max_model_len;
    if (Between(0, 1) == 0) request.stop.eos_tokens = {3, 4};
    if (Between(0, 3) == 0) request.stop.stop_tokens = {5, 6};
    request.scores_prompt = request.stop.max_tokens == 0 || Between(0, 4) == 0;
    request.priority = Between(0, 5) == 0 ? Between(-1, 1) : 0;
    if (Between(0, 5) == 0) request.scope.salt = "another";
    // Sometimes another choice of the prompt before.
    if (!last_.prompt.empty() && Between(0, 2) == 0) {
      request.prompt = last_.prompt;
      request.stop = last_.stop;
      request.scores_prompt = false;
      request.priority = last_.priority;
      request.scope = last_.scope;
      if (!last_.group.has_value()) last_.group = SequenceId{-id};
      request.group = last_.group;
      if (request.stop.max_tokens == 0) request.stop.max_tokens = 1;
    } else {
      request.group = SequenceId{-id};
    }
    last_ = request;
    const Outcome& outcome = expected_[request.id] = RunAlone(request, h_.limits.step.vocabulary);
    texts_.push_back(request.prompt);
    texts_.back().insert(texts_.back().end(), outcome.output.begin(), outcome.output.end());
    const absl::Status admitted = h_.Add(std::move(request));
    EXPECT_TRUE(admitted.ok()) << Message(admitted);
  }

  void CancelOne() {
    if (expected_.empty()) return;
    auto it = expected_.begin();
    std::advance(it, Between(0, static_cast<int>(expected_.size()) - 1));
    h_.scheduler.Cancel(it->first);
    got_.erase(it->first);
    expected_.erase(it);
  }

  void PlanOne() {
    if (std::ssize(h_.answers) == h_.limits.stages + 1) {
      EXPECT_TRUE(h_.Idle());
      return;
    }
    const step::StepPlan* plan = h_.scheduler.Plan();
    if (plan == nullptr) {
      EXPECT_TRUE(!h_.answers.empty() || expected_.empty()) << "stuck: work, but no plan";
      return;
    }
    absl::StatusOr<step::StepResult> result = h_.worker->Run(*plan);
    ASSERT_TRUE(result.ok()) << Message(result.status());
    EXPECT_LE(std::ssize(plan->tokens), h_.limits.max_num_batched_tokens);
    EXPECT_LE(h_.scheduler.num_running(), h_.limits.max_num_seqs);
    std::set<int64_t> rows;
    for (const step::StepRow& row : plan->rows) {
      rows.insert(h_.worker->slots().at(row.slot).sequence.value);
    }
    in_flight_.push_back(rows);
    for (const int64_t id : rows) {
      const auto busy = std::count_if(in_flight_.begin(), in_flight_.end(),
                                      [&](const auto& step) { return step.contains(id); });
      EXPECT_LE(busy, 2) << "sequence " << id;
    }
    h_.answers.push_back(*std::move(result));
  }

  void CommitOne() {
    in_flight_.pop_front();
    for (const TokenEvent& event : h_.Commit()) {
      ASSERT_TRUE(expected_.contains(event.sequence)) << "an event after the end";
      Outcome& outcome = got_[event.sequence];
      if (event.kind == TokenEvent::Kind::kToken) outcome.output.push_back(event.token);
      if (event.kind == TokenEvent::Kind::kPromptScore) outcome.scored.push_back(event.token);
      outcome.finish = event.finish;
      if (event.finish == Finish::kNone) continue;
      if (event.finish == Finish::kNotFinite) outcome.scored.clear();
      const Outcome& want = expected_[event.sequence];
      EXPECT_EQ(outcome.output, want.output) << "sequence " << event.sequence.value;
      EXPECT_EQ(outcome.scored, want.scored) << "sequence " << event.sequence.value;
      EXPECT_EQ(outcome.finish, want.finish) << "sequence " << event.sequence.value;
      expected_.erase(event.sequence);
      got_.erase(event.sequence);
    }
  }

  std::mt19937_64 random_;
  SchedulerHarness h_;
  std::map<SequenceId, Outcome> expected_;  // of sequences that have not ended
  std::map<SequenceId, Outcome> got_;
  std::deque<std::set<int64_t>> in_flight_;
  SequenceOptions last_;
  std::vector<std::vector<TokenId>> texts_;  // prompts and what follows them
  int64_t epoch_ = 1;
};

TEST(SchedulerProperty, EachSequenceGetsWhatItWouldGetAlone) {
  int64_t num_preemptions = 0;
  int64_t num_hits = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Story story(seed);
    story.Run();
    if (HasFailure()) return;
    num_preemptions += story.scheduler().num_preemptions();
    num_hits += story.scheduler().prefix_cache_counts().hits;
  }
  EXPECT_GT(num_preemptions, static_cast<int64_t>(kSeeds) / 4) << "blocks were hardly ever short";
  EXPECT_GT(num_hits, static_cast<int64_t>(kSeeds) * 10) << "hardly anything was reused";
}

}  // namespace
}  // namespace polyreme::sched
