// Padded and recorded steps: the same tokens as without, on each layout, by work that is the same
// in each step of a size; and the memory that a runner says it takes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "deploy/bench/rank_threads.h"
#include "parallel/base/clock.h"
#include "tests/worker/checkpoint_builder.h"
#include "tests/worker/hand_scheduler.h"
#include "tests/worker/recording_backend.h"

namespace polyreme::run {
namespace {

constexpr int32_t kVocabulary = 300;  // of TinyConfig

step::StepLimits LimitsFor(int32_t stages, int32_t max_step_samples) {
  return {.num_slots = 9,
          .num_blocks = 80,
          .tokens_per_block = 8,
          .max_step_tokens = 70,
          .max_step_samples = max_step_samples,
          .max_model_len = 64,
          .vocabulary = kVocabulary,
          .max_steps_in_flight = stages + 1};
}

std::vector<TokenId> Prompt(int32_t seed, int32_t length) {
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < length; ++i)
    tokens.push_back((seed * 113 + i * i * 19 + i) % kVocabulary);
  return tokens;
}

std::vector<HandRequest> Requests() {
  step::SamplingParams greedy;
  greedy.temperature = 0;
  greedy.num_logprobs = 3;
  step::SamplingParams drawn;
  drawn.temperature = 0.8f;
  drawn.top_p = 0.9f;
  drawn.seed = 99;
  drawn.repetition_penalty = 1.2f;
  drawn.logit_bias = {{7, 2.0f}};
  drawn.num_logprobs = 1;
  step::SamplingParams listed = greedy;
  listed.allowed_tokens = {2, 3, 5, 7, 11};
  return {{Prompt(1, 17), 9, greedy, true, 1},
          {Prompt(2, 1), 12, drawn, false, 3},
          {Prompt(3, 20), 5, listed, false, 1},
          {Prompt(4, 9), 16, drawn, false, 2}};
}

// Ranks as RankThreads has them, on recording backends.
class RecordingRanks {
 public:
  struct RankState {
    Recordings recordings;
    std::unique_ptr<backend::Backend> backend;
    weights::ShardWeights weights;
    std::unique_ptr<kv::KvCache> cache;
    std::unique_ptr<comm::ProcessGroup> group;
    int64_t device_bytes = 0;  // taken by the runner
    int64_t host_bytes = 0;
    std::unique_ptr<ModelRunner> runner;
  };

  absl::Status Start(const std::string& directory, const plan::Topology& topology,
                     const step::StepLimits& limits, int64_t head_chunk_samples) {
    ASSIGN_OR_RETURN(spec_, plan::ReadModelSpec(directory));
    ASSIGN_OR_RETURN(const weights::Checkpoint checkpoint, weights::Checkpoint::Open(directory));
    plan::PlanOptions options;
    options.tokens_per_block = limits.tokens_per_block;
    ASSIGN_OR_RETURN(const plan::ShardPlan plan, plan::ShardPlan::Make(spec_, topology, options));
    ranks = std::vector<RankState>(static_cast<size_t>(topology.world_size()));
    return OnEachRank([&](Rank self, RankState& rank) -> absl::Status {
      ASSIGN_OR_RETURN(rank.backend, MakeRecordingBackend(rank.recordings, 1));
      weights::LoadOptions load;
      load.rank = self;
      load.positions = limits.max_model_len;
      ASSIGN_OR_RETURN(rank.weights,
                       weights::LoadShard(checkpoint, spec_, plan, load, rank.backend->packer()));
      const kv::KvLayout layout{.num_layers = rank.weights.shard.layers.size(),
                                .tokens_per_block = limits.tokens_per_block,
                                .kv_heads = rank.weights.shard.kv_heads.size(),
                                .head_dim = spec_.head_dim};
      ASSIGN_OR_RETURN(kv::KvCache cache,
                       kv::KvCache::Make(rank.backend->device(), layout, limits.num_blocks));
      rank.cache = std::make_unique<kv::KvCache>(std::move(cache));
      comm::ProcessGroup::Options join;
      join.kind = comm::ProcessGroup::Kind::kThreads;
      join.self = self;
      join.epoch = Epoch{1};
      join.deadline = MonotonicNow() + absl::Seconds(60);
      join.hub = &hub_;
      ASSIGN_OR_RETURN(rank.group, comm::ProcessGroup::Join(topology, meet_, join));
      const int64_t device_before = rank.recordings.device_bytes;
      const int64_t host_before = rank.recordings.host_bytes;
      ASSIGN_OR_RETURN(rank.runner, ModelRunner::Make({rank.backend.get(), &rank.weights,
                                                       rank.cache.get(), rank.group.get()},
                                                      {limits, Epoch{1}, head_chunk_samples}));
      rank.device_bytes = rank.recordings.device_bytes - device_before;
      rank.host_bytes = rank.recordings.host_bytes - host_before;
      rank.recordings.sealed = true;
      return absl::OkStatus();
    });
  }
  ~RecordingRanks() {
    loops_.clear();
    for (RankState& rank : ranks) rank.runner.reset();
  }

  void StartLoops(int32_t max_steps_in_flight) {
    for (size_t r = 0; r < ranks.size(); ++r) {
      answers_.push_back(
          std::make_unique<BoundedQueue<absl::StatusOr<step::StepResult>>>(size_t{1024}));
      loops_.push_back(std::make_unique<StepLoop>(
          *ranks[r].runner, max_steps_in_flight,
          [queue = answers_.back().get()](absl::StatusOr<step::StepResult> result) {
            CHECK(queue->TryPush(std::move(result)).ok());
          }));
    }
  }
  HandRanks Hand() {
    return {.submit =
                [this](const step::StepPlan& plan) {
                  for (auto& loop : loops_) RETURN_IF_ERROR(loop->Submit(plan));
                  return absl::OkStatus();
                },
            .await = [this] { return Await(); },
            .first_step = ranks[0].runner->stats().steps};
  }

  std::vector<RankState> ranks;

 private:
  absl::StatusOr<step::StepResult> Await() {
    step::StepResult merged;
    for (auto& queue : answers_) {
      ASSIGN_OR_RETURN(absl::StatusOr<step::StepResult> answer,
                       queue->Pop(MonotonicNow() + absl::Seconds(20)));
      RETURN_IF_ERROR(answer.status());
      merged.id = answer->id;
      if (!answer->samples.empty()) merged.samples = answer->samples;
    }
    return merged;
  }
  template <class F>
  absl::Status OnEachRank(const F& start) {
    std::vector<absl::Status> started(ranks.size());
    {
      std::vector<std::jthread> threads;
      for (size_t r = 0; r < ranks.size(); ++r) {
        threads.emplace_back(
            [&, r] { started[r] = start(Rank{static_cast<int32_t>(r)}, ranks[r]); });
      }
    }
    for (const absl::Status& status : started) RETURN_IF_ERROR(status);
    return absl::OkStatus();
  }

  plan::ModelSpec spec_;
  comm::ThreadHub hub_;
  launch::InMemoryRendezvous meet_;
  std::vector<std::unique_ptr<BoundedQueue<absl::StatusOr<step::StepResult>>>> answers_;
  std::vector<std::unique_ptr<StepLoop>> loops_;
};

class RecordingTest : public ::testing::TestWithParam<plan::ModelSpec::Family> {
 protected:
  void SetUp() override {
    const std::string config = weights::TinyConfig(GetParam());
    const absl::StatusOr<plan::ModelSpec> spec = plan::ParseModelSpec(config);
    ASSERT_TRUE(spec.ok()) << spec.status();
    directory_ = weights::WriteCheckpoint(fmt::format("recording{}", static_cast<int>(GetParam())),
                                          config, weights::RandomTensors(*spec, "BF16"));
  }
  std::vector<HandOutput> Unpadded() {
    RankThreadsOptions options;
    options.limits = LimitsFor(1, 70);
    const auto ranks = RankThreads::Start(directory_, options);
    EXPECT_TRUE(ranks.ok()) << ranks.status();
    if (!ranks.ok()) return {};
    const auto outputs = RunByHand(**ranks, options.limits, Requests(), {.alone = true});
    EXPECT_TRUE(outputs.ok()) << outputs.status();
    return outputs.ok() ? *outputs : std::vector<HandOutput>{};
  }
  std::string directory_;
};

TEST_P(RecordingTest, PaddedStepsGiveTheSameTokensByTheSameWorkOnTheSameMemory) {
  const std::vector<HandOutput> expected = Unpadded();
  ASSERT_EQ(expected.size(), 7u);
  for (const auto& [stages, shards] : {std::pair{1, 1}, {1, 2}, {2, 1}, {3, 2}}) {
    SCOPED_TRACE(fmt::format("tp{}pp{}", shards, stages));
    const step::StepLimits limits = LimitsFor(stages, 70);
    RecordingRanks ranks;
    const absl::Status started =
        ranks.Start(directory_, *plan::Topology::Make(stages, shards), limits, 4);
    ASSERT_TRUE(started.ok()) << started;
    for (const auto& rank : ranks.ranks) {
      EXPECT_EQ(rank.recordings.work.size(), 5u);
      EXPECT_EQ(rank.runner->recording().num_recorded, 5);
    }
    ranks.StartLoops(limits.max_steps_in_flight);
    for (const HandPolicy& policy :
         {HandPolicy{.chunk = 1000, .depth = 1, .alone = true},
          HandPolicy{.chunk = 1, .depth = stages + 1, .block_seed = 2},
          HandPolicy{.chunk = 6, .depth = stages + 1, .cohorts = stages, .block_seed = 3}}) {
      const auto outputs = RunByHand(ranks.Hand(), limits, Requests(), policy);
      ASSERT_TRUE(outputs.ok()) << outputs.status();
      ASSERT_EQ(outputs->size(), expected.size());
      for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_TRUE(expected[i] == (*outputs)[i]) << "sequence " << i;
      }
    }
    for (const auto& rank : ranks.ranks) {
      EXPECT_EQ(rank.recordings.mistake, "");
      EXPECT_EQ(rank.recordings.work.size(), 5u);
      EXPECT_GT(rank.recordings.num_replays, 60);
    }
  }
}

// Rows beyond the samples that a step may have are not padded: their samples would not fit.
TEST_P(RecordingTest, ASmallNumberOfSamplesBoundsWhatIsPadded) {
  const step::StepLimits limits = LimitsFor(1, 3);
  RecordingRanks ranks;
  ASSERT_TRUE(ranks.Start(directory_, plan::Topology(), limits, 64).ok());
  EXPECT_EQ(ranks.ranks[0].recordings.work.size(), 3u);  // 1, 2, 3
  const StepPadding padding(ranks.ranks[0].backend->device(), limits);
  step::StepPlan plan;
  for (int32_t n = 1; n <= 4; ++n) {
    plan.rows.push_back({SlotId{n - 1}, 5, 1, {}});
    plan.tokens.push_back(0);
    const StepSize size = padding.SizeOf(plan);
    EXPECT_EQ(size.recorded, n <= 3);
    EXPECT_EQ(size.num_rows, n);
    EXPECT_EQ(size.num_samples, n <= 3 ? n : 0);
  }
}

TEST_P(RecordingTest, PromptsAndScoresAreNotPadded) {
  Recordings recordings;
  const auto backend = MakeRecordingBackend(recordings, 1);
  ASSERT_TRUE(backend.ok());
  const StepPadding padding((*backend)->device(), LimitsFor(1, 70));
  step::StepPlan plan;
  EXPECT_FALSE(padding.SizeOf(plan).recorded);  // nothing to compute
  plan.rows = {{SlotId{0}, 0, 1, {}}, {SlotId{1}, 0, 1, {}}, {SlotId{2}, 0, 1, {}}};
  plan.tokens = {1, 2, 3};
  EXPECT_TRUE(padding.SizeOf(plan).recorded);
  EXPECT_EQ(padding.SizeOf(plan).num_rows, 4);
  plan.samples.resize(5);  // forks draw several times from one row
  EXPECT_FALSE(padding.SizeOf(plan).recorded);
  EXPECT_EQ(padding.SizeOf(plan).num_samples, 5);
  plan.samples.clear();
  plan.rows[2].num_tokens = 2;
  plan.tokens.push_back(4);
  EXPECT_FALSE(padding.SizeOf(plan).recorded);
  EXPECT_EQ(padding.SizeOf(plan).num_tokens, 4);
  EXPECT_EQ(padding.SizeOf(plan).num_rows, 3);
}

TEST_P(RecordingTest, ARunnerTakesWhatItsNumbersSay) {
  for (const auto& [stages, shards] : {std::pair{1, 1}, {2, 2}, {3, 1}}) {
    for (const int32_t samples : {3, 70}) {
      SCOPED_TRACE(fmt::format("tp{}pp{}, {} samples", shards, stages, samples));
      RecordingRanks ranks;
      ASSERT_TRUE(ranks
                      .Start(directory_, *plan::Topology::Make(stages, shards),
                             LimitsFor(stages, samples), 4)
                      .ok());
      for (const auto& rank : ranks.ranks) {
        const StepMemory& memory = rank.runner->memory();
        EXPECT_GT(memory.arena_bytes, 0);
        EXPECT_EQ(memory.device_bytes(), rank.device_bytes);
        EXPECT_EQ(memory.host_bytes, rank.host_bytes);
      }
    }
  }
}

TEST(CacheBudget, IsWhatIsLeftOfTheAllowedPart) {
  constexpr int64_t kGibibyte = int64_t{1} << 30;
  CacheShare share;
  share.total_bytes = 100 * kGibibyte;
  share.free_bytes = 60 * kGibibyte;
  share.weight_bytes = 39 * kGibibyte;
  share.step.arena_bytes = 2 * kGibibyte;
  share.utilization = 0.9;
  share.sequence_bytes = kGibibyte;
  share.max_model_len = 4096;
  const auto alone = CacheBudget(share);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_LT(*alone, 48 * kGibibyte);  // 90 - 40 - 2, and what recordings take
  EXPECT_GT(*alone, 47 * kGibibyte);
  share.world_size = 2;
  EXPECT_LT(*CacheBudget(share), *alone);  // and communicators
  share.ranks_on_device = 2;               // 45 - 39 - 2, and a process
  EXPECT_LT(*CacheBudget(share), 4 * kGibibyte);
  EXPECT_GT(*CacheBudget(share), kGibibyte);
  share.sequence_bytes = 5 * kGibibyte;
  const absl::Status refused = CacheBudget(share).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(refused), ::testing::HasSubstr("needs a cache of 5.00 GiB, but only 1."));
  EXPECT_THAT(Message(refused), ::testing::HasSubstr("--max-model-len"));
}

INSTANTIATE_TEST_SUITE_P(Families, RecordingTest,
                         ::testing::Values(plan::ModelSpec::Family::kLlama,
                                           plan::ModelSpec::Family::kQwen3));

}  // namespace
}  // namespace polyreme::run
