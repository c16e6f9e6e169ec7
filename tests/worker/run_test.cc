// Runners and step loops: what they refuse, how they fail, how they end, and that a step takes no
// memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "deploy/bench/rank_threads.h"
#include "parallel/base/clock.h"
#include "tests/worker/checkpoint_builder.h"
#include "tests/worker/count_allocations.h"
#include "tests/worker/test_backends.h"

namespace polyreme::run {
namespace {

using bench::RankThreads;
using bench::RankThreadsOptions;

using ::testing::HasSubstr;

step::StepLimits Limits() {
  return {.num_slots = 4,
          .num_blocks = 32,
          .tokens_per_block = 8,
          .max_step_tokens = 32,
          .max_step_samples = 8,
          .max_model_len = 112,
          .vocabulary = 300,
          .max_steps_in_flight = 3};
}

// Slot 0: a prompt of three tokens and a draw.
step::StepPlan FirstPlan() {
  step::StepPlan plan{.id = StepId{0}, .epoch = Epoch{1}};
  plan.opened.push_back({.slot = SlotId{0},
                         .sequence = SequenceId{1},
                         .tokens = {5, 6, 7},
                         .num_prompt_tokens = 3,
                         .blocks = {BlockId{3}, BlockId{2}, BlockId{9}, BlockId{4}},
                         .sampling = {.repetition_penalty = 1.1f, .num_logprobs = 2}});
  plan.rows.push_back({SlotId{0}, 0, 3, {}});
  plan.tokens = {5, 6, 7};
  plan.samples.push_back({step::Sample::Kind::kDraw, SlotId{0}, 2, 0});
  return plan;
}

// The token drawn by the step before, fed back.
step::StepPlan NextPlan(int64_t id) {
  step::StepPlan plan{.id = StepId{id}, .epoch = Epoch{1}};
  plan.rows.push_back(
      {SlotId{0}, static_cast<int32_t>(id) + 2, 1, step::TokenSource{StepId{id - 1}, 0}});
  plan.tokens = {0};
  plan.samples.push_back({step::Sample::Kind::kDraw, SlotId{0}, 0, 0});
  return plan;
}

class RunTest : public ::testing::Test {
 protected:
  static std::string Checkpoint() {
    const std::string config = weights::TinyConfig(plan::ModelSpec::Family::kLlama);
    return weights::WriteCheckpoint("run", config,
                                    weights::RandomTensors(*plan::ParseModelSpec(config), "F32"));
  }
  std::unique_ptr<RankThreads> Start(int32_t stages, int32_t shards,
                                     const std::string& directory = Checkpoint(),
                                     const TestBackend& backend = {.name = "cpu"}) {
    RankThreadsOptions options;
    options.device = backend.device;
    options.backend = backend.options();
    options.patience = absl::Seconds(60);
    options.stages = stages;
    options.shards = shards;
    options.limits = Limits();
    auto ranks = RankThreads::Start(directory, options);
    EXPECT_TRUE(ranks.ok()) << ranks.status();
    return ranks.ok() ? *std::move(ranks) : nullptr;
  }
};

TEST_F(RunTest, OnlyTheFirstShardOfTheLastStageAnswersWithSamples) {
  const auto ranks = Start(2, 2);
  ASSERT_NE(ranks, nullptr);
  ASSERT_TRUE(ranks->Submit(FirstPlan()).ok());
  for (int32_t rank = 0; rank < 4; ++rank) {
    const auto answer = ranks->AnswerOf(rank);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->samples.size(), rank == 2 ? 1u : 0u);
    ASSERT_EQ(answer->timings.size(), 1u);
    EXPECT_EQ(answer->timings[0].rank, Rank{rank});
    EXPECT_GT(answer->timings[0].busy, absl::ZeroDuration());
    EXPECT_GE(answer->timings[0].waiting, absl::ZeroDuration());
  }
}

TEST_F(RunTest, AnIllegalPlanPoisonsTheEpochOnceOnEveryRank) {
  const auto ranks = Start(2, 2);
  ASSERT_NE(ranks, nullptr);
  ASSERT_TRUE(ranks->Submit(FirstPlan()).ok());
  ASSERT_TRUE(ranks->Await().ok());
  step::StepPlan illegal = NextPlan(1);
  illegal.rows[0].first_position = 9;
  ASSERT_TRUE(ranks->Submit(illegal).ok());
  for (int32_t rank = 0; rank < 4; ++rank) {
    const auto answer = ranks->AnswerOf(rank);
    EXPECT_FALSE(answer.ok());
    // A rank may hear of it from itself or from a peer that was quicker.
    if (answer.status().code() == absl::StatusCode::kInvalidArgument) {
      EXPECT_THAT(Message(answer.status()), HasSubstr("first_position"));
    }
    EXPECT_FALSE(ranks->Submit(NextPlan(2)).ok());
  }
}

TEST_F(RunTest, APlanOfAnotherEpochIsRefused) {
  const auto ranks = Start(1, 1);
  ASSERT_NE(ranks, nullptr);
  step::StepPlan plan = FirstPlan();
  plan.epoch = Epoch{2};
  ASSERT_TRUE(ranks->Submit(plan).ok());
  EXPECT_THAT(Message(ranks->AnswerOf(0).status()), HasSubstr("expected epoch 1, got 2"));
}

TEST_F(RunTest, AnAbortedRankEndsItsPeersWithinTheStep) {
  for (const int32_t victim : {0, 1, 2, 3}) {
    SCOPED_TRACE(fmt::format("rank {} aborts", victim));
    const auto ranks = Start(2, 2);
    ASSERT_NE(ranks, nullptr);
    ASSERT_TRUE(ranks->Submit(FirstPlan()).ok());
    ASSERT_TRUE(ranks->Await().ok());
    const absl::Time begin = MonotonicNow();
    ranks->Abort(victim, Unavailable("pulled the plug"));
    ranks->Submit(NextPlan(1)).IgnoreError();  // the victim takes it no more, the others may
    EXPECT_THAT(Message(ranks->AnswerOf(victim).status()), HasSubstr("pulled the plug"));
    for (int32_t rank = 0; rank < 4; ++rank) {
      if (rank == victim) continue;
      // Ranks after the victim never got the plan; whoever waits for the victim is told.
      ranks->Abort(rank, Unavailable("the coordinator ends the epoch"));
      absl::StatusOr<step::StepResult> answer = ranks->AnswerOf(rank);
      // A first stage may have handed its hidden states on before it heard; it hears after that.
      if (answer.ok() && rank < 2) answer = ranks->AnswerOf(rank);
      EXPECT_FALSE(answer.ok());
      EXPECT_FALSE(absl::IsDeadlineExceeded(answer.status())) << answer.status();
    }
    EXPECT_LT(MonotonicNow() - begin, absl::Seconds(10));
  }
}

class RunOnEach : public RunTest, public ::testing::WithParamInterface<TestBackend> {};

TEST_P(RunOnEach, NotFiniteLogitsEndOneSampleOnly) {
  const std::string config = weights::TinyConfig(plan::ModelSpec::Family::kLlama);
  std::vector<weights::BuiltTensor> tensors =
      weights::RandomTensors(*plan::ParseModelSpec(config), "F32");
  for (weights::BuiltTensor& tensor : tensors) {
    if (tensor.name != "model.embed_tokens.weight") continue;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    tensor.bytes.replace(9 * 32 * sizeof(float), sizeof nan,
                         std::string(reinterpret_cast<const char*>(&nan), sizeof nan));
  }
  const auto ranks = Start(1, std::min(2, GetParam().max_ranks),
                           weights::WriteCheckpoint("nan", config, tensors), GetParam());
  ASSERT_NE(ranks, nullptr);
  step::StepPlan plan = FirstPlan();
  plan.opened.push_back(plan.opened[0]);
  plan.opened[1].slot = SlotId{1};
  plan.opened[1].blocks = {BlockId{11}, BlockId{12}};
  plan.opened[1].tokens = {5, 9, 7};
  plan.rows.push_back({SlotId{1}, 0, 3, {}});
  plan.tokens.insert(plan.tokens.end(), {5, 9, 7});
  plan.samples.push_back({step::Sample::Kind::kDraw, SlotId{1}, 5, 0});
  ASSERT_TRUE(ranks->Submit(plan).ok());
  const auto result = ranks->Await();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->samples[0].finite);
  EXPECT_EQ(result->samples[0].top.size(), 2u);
  EXPECT_FALSE(result->samples[1].finite);
  EXPECT_EQ(result->samples[1].token, 0);
  EXPECT_TRUE(result->samples[1].top.empty());
  // The next step, which a GPU replays.
  step::StepPlan next = NextPlan(1);
  next.rows.push_back({SlotId{1}, 3, 1, step::TokenSource{StepId{0}, 1}});
  next.tokens.push_back(0);
  next.samples.push_back({step::Sample::Kind::kDraw, SlotId{1}, 1, 0});
  ASSERT_TRUE(ranks->Submit(next).ok());
  const auto second = ranks->Await();
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_TRUE(second->samples[0].finite);
  EXPECT_FALSE(second->samples[1].finite);
}

INSTANTIATE_TEST_SUITE_P(Backends, RunOnEach, ::testing::ValuesIn(TestBackends()),
                         [](const auto& name) { return name.param.name; });

// One rank, driven by the test's own thread: no loop, no queue.
class OneRankTest : public RunTest, public ::testing::WithParamInterface<TestBackend> {
 protected:
  void SetUp() override {
    const std::string directory = Checkpoint();
    const auto spec = plan::ReadModelSpec(directory);
    const auto checkpoint = weights::Checkpoint::Open(directory);
    const auto topology = plan::Topology::Make(1, 1);
    ASSERT_TRUE(spec.ok() && checkpoint.ok() && topology.ok());
    plan::PlanOptions options;
    options.tokens_per_block = Limits().tokens_per_block;
    const auto plan = plan::ShardPlan::Make(*spec, *topology, options);
    ASSERT_TRUE(plan.ok()) << plan.status();
    backend::BackendOptions backend_options = GetParam().options();
    backend_options.num_threads = 2;
    auto backend = backend::MakeBackend(GetParam().device, backend_options);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    weights::LoadOptions load;
    load.positions = Limits().max_model_len;
    weights_ = *weights::LoadShard(*checkpoint, *spec, *plan, load, backend_->packer());
    const kv::KvLayout layout{.num_layers = 4,
                              .tokens_per_block = 8,
                              .kv_heads = 2,
                              .head_dim = 8,
                              .dtype = backend_->ops().activation_dtype()};
    cache_ = std::make_unique<kv::KvCache>(
        *kv::KvCache::Make(backend_->device(), layout, Limits().num_blocks));
    comm::ProcessGroup::Options join;
    join.nccl = backend_->communicators();
    join.kind =
        join.nccl != nullptr ? comm::ProcessGroup::Kind::kNccl : comm::ProcessGroup::Kind::kThreads;
    join.epoch = Epoch{1};
    join.deadline = MonotonicNow() + absl::Seconds(10);
    join.hub = &hub_;
    group_ = *comm::ProcessGroup::Join(*topology, meet_, join);
    auto runner = ModelRunner::Make({backend_.get(), &weights_, cache_.get(), group_.get()},
                                    {Limits(), Epoch{1}});
    ASSERT_TRUE(runner.ok()) << runner.status();
    runner_ = *std::move(runner);
  }

  const absl::Time deadline_ = MonotonicNow() + absl::Seconds(30);
  launch::InMemoryRendezvous meet_;
  comm::ThreadHub hub_;
  std::unique_ptr<backend::Backend> backend_;
  weights::ShardWeights weights_;
  std::unique_ptr<kv::KvCache> cache_;
  std::unique_ptr<comm::ProcessGroup> group_;
  std::unique_ptr<ModelRunner> runner_;
};

TEST_P(OneRankTest, AStepTakesNoMemory) {
  ASSERT_TRUE(runner_->Enqueue(FirstPlan()).ok());
  for (int64_t id = 1; id < 25; ++id) {
    const step::StepPlan next = NextPlan(id);
    StartCountingAllocations();
    const absl::Status enqueued = runner_->Enqueue(next);
    const int64_t allocations = StopCountingAllocations();
    ASSERT_TRUE(enqueued.ok()) << enqueued;
    // The second step may still find its sizes.
    if (id > 1) {
      EXPECT_EQ(allocations, 0) << "step " << id;
    }
    const auto result = runner_->Collect(StepId{id - 1}, deadline_);
    ASSERT_TRUE(result.ok()) << result.status();
  }
  EXPECT_EQ(runner_->stats().steps, 25);
  EXPECT_EQ(runner_->stats().max_steps_in_flight, 2);
  EXPECT_EQ(runner_->stats().fed_back_tokens, 24);
}

// Contexts grow from block to block, over what attention splits.
TEST_P(OneRankTest, ManyStepsTakeNoMemoryOfTheDevice) {
  step::StepPlan first = FirstPlan();
  first.opened[0].blocks.clear();
  for (int32_t block = 0; block < 14; ++block) first.opened[0].blocks.push_back(BlockId{block});
  ASSERT_TRUE(runner_->Enqueue(first).ok());
  ASSERT_TRUE(runner_->Enqueue(NextPlan(1)).ok());
  ASSERT_TRUE(runner_->Collect(StepId{0}, deadline_).ok());
  const int64_t free = backend_->device().FreeBytes();
  for (int64_t id = 2; id <= 101; ++id) {
    ASSERT_TRUE(runner_->Enqueue(NextPlan(id)).ok());
    ASSERT_TRUE(runner_->Collect(StepId{id - 1}, deadline_).ok());
  }
  // What is free of the host's memory is everybody's doing.
  if (GetParam().on_gpu()) {
    EXPECT_EQ(backend_->device().FreeBytes(), free);
  }
  ASSERT_TRUE(runner_->Collect(StepId{101}, deadline_).ok());
}

TEST_P(OneRankTest, MoreStepsThanMayBeInFlightAreRefusedAndChangeNothing) {
  ASSERT_TRUE(runner_->Enqueue(FirstPlan()).ok());
  ASSERT_TRUE(runner_->Enqueue(NextPlan(1)).ok());
  ASSERT_TRUE(runner_->Enqueue(NextPlan(2)).ok());
  const absl::Status refused = runner_->Enqueue(NextPlan(3));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(runner_->Collect(StepId{0}, deadline_).ok());
  EXPECT_TRUE(runner_->Enqueue(NextPlan(3)).ok());
  for (const int64_t id : {1, 2, 3}) EXPECT_TRUE(runner_->Collect(StepId{id}, deadline_).ok());
}

TEST_P(OneRankTest, PenaltiesCountWhatWasDrawnInStepsStillInFlight) {
  // A strong presence penalty makes each greedy token differ from all before it.
  step::StepPlan first = FirstPlan();
  first.opened[0].sampling = {.temperature = 0, .presence_penalty = 1000.0f};
  ASSERT_TRUE(runner_->Enqueue(first).ok());
  std::vector<TokenId> drawn;
  for (int64_t id = 1; id <= 20; ++id) {
    ASSERT_TRUE(runner_->Enqueue(NextPlan(id)).ok());
    const auto result = runner_->Collect(StepId{id - 1}, deadline_);
    ASSERT_TRUE(result.ok()) << result.status();
    drawn.push_back(result->samples[0].token);
  }
  ASSERT_TRUE(runner_->Collect(StepId{20}, deadline_).ok());
  std::sort(drawn.begin(), drawn.end());
  EXPECT_EQ(std::unique(drawn.begin(), drawn.end()), drawn.end());
}

INSTANTIATE_TEST_SUITE_P(Backends, OneRankTest, ::testing::ValuesIn(TestBackends()),
                         [](const auto& name) { return name.param.name; });

}  // namespace
}  // namespace polyreme::run
