#include "deploy/bench/rank_threads.h"

#include <utility>

#include "parallel/base/clock.h"

namespace polyreme::bench {

absl::StatusOr<std::unique_ptr<RankThreads>> RankThreads::Start(const std::string& directory,
                                                                const RankThreadsOptions& options) {
  auto threads = std::unique_ptr<RankThreads>(new RankThreads());
  ASSIGN_OR_RETURN(threads->spec_, plan::ReadModelSpec(directory));
  ASSIGN_OR_RETURN(const weights::Checkpoint checkpoint, weights::Checkpoint::Open(directory));
  ASSIGN_OR_RETURN(const plan::Topology topology,
                   plan::Topology::Make(options.stages, options.shards));
  plan::PlanOptions plan_options;
  plan_options.tokens_per_block = options.limits.tokens_per_block;
  ASSIGN_OR_RETURN(const plan::ShardPlan plan,
                   plan::ShardPlan::Make(threads->spec_, topology, plan_options));
  const auto world_size = static_cast<size_t>(topology.world_size());
  threads->ranks_.resize(world_size);
  std::vector<absl::Status> started(world_size);
  {
    std::vector<std::jthread> starters;
    for (size_t r = 0; r < world_size; ++r) {
      starters.emplace_back([&, r] {
        started[r] = threads->StartRank(checkpoint, plan, options, Rank{static_cast<int32_t>(r)});
      });
    }
  }
  for (const absl::Status& status : started) RETURN_IF_ERROR(status);
  return threads;
}

absl::Status RankThreads::StartRank(const weights::Checkpoint& checkpoint,
                                    const plan::ShardPlan& plan, const RankThreadsOptions& options,
                                    Rank self) {
  RankState& rank = ranks_[static_cast<size_t>(self.value)];
  ASSIGN_OR_RETURN(rank.backend, backend::MakeBackend("cpu", {.num_threads = options.num_threads}));
  weights::LoadOptions load;
  load.rank = self;
  load.positions = options.limits.max_model_len;
  ASSIGN_OR_RETURN(rank.weights,
                   weights::LoadShard(checkpoint, spec_, plan, load, rank.backend->packer()));
  const kv::KvLayout layout{.num_layers = rank.weights.shard.layers.size(),
                            .tokens_per_block = options.limits.tokens_per_block,
                            .kv_heads = rank.weights.shard.kv_heads.size(),
                            .head_dim = spec_.head_dim};
  ASSIGN_OR_RETURN(kv::KvCache cache,
                   kv::KvCache::Make(rank.backend->device(), layout, options.limits.num_blocks));
  rank.cache = std::make_unique<kv::KvCache>(std::move(cache));
  comm::ProcessGroup::Options join;
  join.kind = comm::ProcessGroup::Kind::kThreads;
  join.self = self;
  join.epoch = Epoch{1};
  join.deadline = MonotonicNow() + absl::Seconds(60);
  join.hub = &hub_;
  ASSIGN_OR_RETURN(rank.group, comm::ProcessGroup::Join(plan.topology(), meet_, join));
  const run::ModelRunner::Options run_options{options.limits, Epoch{1}, options.head_chunk_samples};
  ASSIGN_OR_RETURN(rank.runner, run::ModelRunner::Make({rank.backend.get(), &rank.weights,
                                                        rank.cache.get(), rank.group.get()},
                                                       run_options));
  rank.answers = std::make_unique<BoundedQueue<absl::StatusOr<step::StepResult>>>(1024);
  rank.loop = std::make_unique<run::StepLoop>(
      *rank.runner, options.limits.max_steps_in_flight,
      [queue = rank.answers.get()](absl::StatusOr<step::StepResult> result) {
        CHECK(queue->TryPush(std::move(result)).ok());
      });
  return absl::OkStatus();
}

RankThreads::~RankThreads() {
  for (RankState& rank : ranks_) {
    if (rank.loop != nullptr) rank.loop->Stop();
  }
  for (RankState& rank : ranks_) rank.loop.reset();
  for (RankState& rank : ranks_) rank.runner.reset();
}

absl::Status RankThreads::Submit(const step::StepPlan& plan) {
  for (RankState& rank : ranks_) RETURN_IF_ERROR(rank.loop->Submit(plan));
  return absl::OkStatus();
}

absl::StatusOr<step::StepResult> RankThreads::Await() {
  step::StepResult merged;
  for (int32_t rank = 0; rank < world_size(); ++rank) {
    ASSIGN_OR_RETURN(step::StepResult part, AnswerOf(rank));
    if (rank > 0 && part.id != merged.id) {
      return Internal("rank {} answered step {}, rank 0 step {}", rank, part.id.value,
                      merged.id.value);
    }
    merged.id = part.id;
    merged.epoch = part.epoch;
    if (!part.samples.empty()) merged.samples = std::move(part.samples);
    merged.timings.insert(merged.timings.end(), part.timings.begin(), part.timings.end());
  }
  return merged;
}

absl::StatusOr<step::StepResult> RankThreads::AnswerOf(int32_t rank) {
  ASSIGN_OR_RETURN(
      absl::StatusOr<step::StepResult> answer,
      ranks_[static_cast<size_t>(rank)].answers->Pop(MonotonicNow() + absl::Seconds(10)));
  return answer;
}

run::RunnerStats RankThreads::stats(int32_t rank) const {
  return ranks_[static_cast<size_t>(rank)].runner->stats();
}

void RankThreads::Abort(int32_t rank, const absl::Status& why) {
  ranks_[static_cast<size_t>(rank)].loop->Abort(why);
}

}  // namespace polyreme::bench
