#include "deploy/bench/rank_threads.h"

#include <utility>

#include "parallel/base/clock.h"

namespace polyreme::bench {

absl::StatusOr<std::unique_ptr<RankThreads>> RankThreads::Start(const std::string& directory,
                                                                const RankThreadsOptions& options) {
  auto threads = std::unique_ptr<RankThreads>(new RankThreads());
  ASSIGN_OR_RETURN(threads->spec_, plan::ReadModelSpec(directory));
  threads->patience_ = options.patience;
  ASSIGN_OR_RETURN(
      const std::unique_ptr<weights::TensorSource> source,
      weights::OpenTensorSource(directory, threads->spec_, options.format, options.seed));
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
        started[r] = threads->StartRank(*source, plan, options, Rank{static_cast<int32_t>(r)});
      });
    }
  }
  for (const absl::Status& status : started) RETURN_IF_ERROR(status);
  return threads;
}

absl::Status RankThreads::StartRank(const weights::TensorSource& source,
                                    const plan::ShardPlan& plan, const RankThreadsOptions& options,
                                    Rank self) {
  RankState& rank = ranks_[static_cast<size_t>(self.value)];
  backend::BackendOptions backend_options = options.backend;
  backend_options.num_threads = options.num_threads;
  backend_options.device_index = self.value;
  ASSIGN_OR_RETURN(rank.backend, backend::MakeBackend(options.device, backend_options));
  weights::LoadOptions load;
  load.rank = self;
  load.positions = options.limits.max_model_len;
  ASSIGN_OR_RETURN(rank.weights,
                   weights::LoadShard(source, spec_, plan, load, rank.backend->packer()));
  const kv::KvLayout layout{.num_layers = rank.weights.shard.layers.size(),
                            .tokens_per_block = options.limits.tokens_per_block,
                            .kv_heads = rank.weights.shard.kv_heads.size(),
                            .head_dim = spec_.head_dim,
                            .dtype = rank.backend->ops().activation_dtype()};
  ASSIGN_OR_RETURN(kv::KvCache cache,
                   kv::KvCache::Make(rank.backend->device(), layout, options.limits.num_blocks));
  rank.cache = std::make_unique<kv::KvCache>(std::move(cache));
  RETURN_IF_ERROR(Join(plan.topology(), options, self));
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

absl::Status RankThreads::Join(const plan::Topology& topology, const RankThreadsOptions& options,
                               Rank self) {
  RankState& rank = ranks_[static_cast<size_t>(self.value)];
  comm::ProcessGroup::Options join;
  join.self = self;
  join.epoch = Epoch{1};
  join.deadline = MonotonicNow() + absl::Seconds(60);
  join.hub = &hub_;
  join.nccl = rank.backend->communicators();
  join.kind = join.nccl != nullptr ? comm::ProcessGroup::Kind::kNccl : options.transport;
  join.job_token = "ranks of one process";  // of the way back from last stage to first
  ASSIGN_OR_RETURN(
      rank.group,
      comm::ProcessGroup::Join(topology, options.meet != nullptr ? *options.meet : meet_, join));
  return absl::OkStatus();
}

RankThreads::~RankThreads() {
  for (RankState& rank : ranks_) {
    if (rank.loop == nullptr) continue;
    // Ranks whose peer has failed may wait for it in the middle of a step.
    if (failed_) rank.loop->Abort(Cancelled("another rank has failed"));
    rank.loop->Stop();
  }
  for (RankState& rank : ranks_) rank.loop.reset();
  // Each on a thread of its own: members of a group may wait for each other in leaving it.
  std::vector<std::jthread> enders;
  for (RankState& rank : ranks_) {
    enders.emplace_back([&rank] {
      // In this order: a communicator ends only when no recording holds its operations any more.
      rank.runner.reset();
      rank.group.reset();
    });
  }
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
  auto popped = ranks_[static_cast<size_t>(rank)].answers->Pop(MonotonicNow() + patience_);
  failed_ = failed_ || !popped.ok() || !popped->ok();
  ASSIGN_OR_RETURN(absl::StatusOr<step::StepResult> answer, std::move(popped));
  return answer;
}

run::RunnerStats RankThreads::stats(int32_t rank) const {
  return ranks_[static_cast<size_t>(rank)].runner->stats();
}

int64_t RankThreads::weight_bytes(int32_t rank) const {
  return ranks_[static_cast<size_t>(rank)].weights.total_bytes();
}

int64_t RankThreads::used_bytes(int32_t rank) const {
  return ranks_[static_cast<size_t>(rank)].backend->device().UsedBytes();
}

backend::DeviceKind RankThreads::device_kind(int32_t rank) const {
  return ranks_[static_cast<size_t>(rank)].backend->kind();
}

void RankThreads::Abort(int32_t rank, const absl::Status& why) {
  ranks_[static_cast<size_t>(rank)].loop->Abort(why);
}

}  // namespace polyreme::bench
