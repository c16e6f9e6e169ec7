#include "worker/run/worker_service.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "parallel/base/clock.h"
#include "parallel/base/limits.h"
#include "parallel/base/log.h"
#include "parallel/plan/model_spec.h"
#include "worker/kv/kv_cache.h"
#include "worker/run/model_runner.h"
#include "worker/run/step_loop.h"
#include "worker/weights/checkpoint.h"
#include "worker/weights/shard_loader.h"

namespace polyreme::run {
namespace {

// What outlives an epoch: the device, the shard of the weights, the pool of blocks.
struct Shard {
  std::unique_ptr<backend::Backend> backend;
  weights::ShardWeights weights;
  std::optional<kv::KvCache> cache;
};

kv::KvLayout LayoutOf(const plan::Shard& shard, const plan::ModelSpec& spec,
                      const WorkerOptions& options) {
  return kv::KvLayout{shard.layers.size(), options.limits.tokens_per_block, shard.kv_heads.size(),
                      spec.head_dim, options.plan.kv_dtype};
}

int64_t KvBudget(const WorkerOptions& options, const Device& device) {
  if (options.kv_bytes_budget > 0) return options.kv_bytes_budget;
  // A quarter leaves room for the system, the page cache of the checkpoint, and other programs.
  return device.FreeBytes() / 4 / std::max(1, options.ranks_on_host);
}

class Worker {
 public:
  Worker(WorkerOptions options, plan::ModelSpec spec, plan::ShardPlan plan,
         weights::Checkpoint checkpoint)
      : options_(std::move(options)),
        spec_(std::move(spec)),
        plan_(std::move(plan)),
        checkpoint_(std::move(checkpoint)),
        client_(options_.coordinator, options_.job_token) {}
  ~Worker() { EndLoading(); }

  absl::Status Run();

 private:
  absl::Status Load();
  absl::Status ReadOrders();
  absl::Status Start(const StartOrder& order);
  void Answer(absl::StatusOr<step::StepResult> result);
  void EndLoading();
  void EndEpoch();

  const WorkerOptions options_;
  const plan::ModelSpec spec_;
  const plan::ShardPlan plan_;
  const weights::Checkpoint checkpoint_;
  ClusterClient client_;

  std::thread loader_;
  std::atomic<bool> stopping_ = false;
  Shard shard_;  // the loader's until it is joined
  // One epoch, each over those before it.
  std::unique_ptr<comm::ProcessGroup> group_;
  std::unique_ptr<ModelRunner> runner_;
  std::unique_ptr<StepLoop> loop_;
};

absl::Status Worker::Run() {
  JoinInfo identity = options_.identity;
  identity.checkpoint = checkpoint_.fingerprint();
  RETURN_IF_ERROR(client_.Join(identity, MonotonicNow() + options_.join_timeout).status());
  RETURN_IF_ERROR(client_.Attach(identity.rank));
  // Orders are read meanwhile, so that a stop is heard.
  loader_ = std::thread([this] {
    if (absl::Status s = Load(); !s.ok() && !stopping_) client_.SendFailed(s).IgnoreError();
  });
  const absl::Status status = ReadOrders();
  EndLoading();
  EndEpoch();
  client_.Finish();
  return status;
}

// Ends with the coordinator's stop order, or when it is gone. Whatever goes wrong here is first
// told to the coordinator, which decides that the launch ends and says so to every rank, this one
// included.
absl::Status Worker::ReadOrders() {
  for (;;) {
    ASSIGN_OR_RETURN(Order order, client_.Read());
    if (const auto* stop = std::get_if<StopOrder>(&order)) {
      return stop->why.ok() ? absl::OkStatus() : Annotate(stop->why, "the launch ended");
    }
    absl::Status status;
    if (const auto* start = std::get_if<StartOrder>(&order)) {
      status = Start(*start);
    } else if (loop_ == nullptr) {
      status = FailedPrecondition("a step came before the start order");
    } else {
      status = loop_->Submit(std::get<step::StepPlan>(std::move(order)));
    }
    if (!status.ok()) client_.SendFailed(status).IgnoreError();
  }
}

absl::Status Worker::Load() {
  ASSIGN_OR_RETURN(shard_.backend,
                   backend::MakeBackend(options_.backend, options_.backend_options));
  weights::LoadOptions load;
  load.rank = options_.identity.rank;
  load.positions = options_.limits.max_model_len;
  absl::Time next_report = MonotonicNow();
  load.progress = [&](int64_t done, int64_t total) {
    if (MonotonicNow() < next_report && done < total) return;
    next_report = MonotonicNow() + absl::Milliseconds(250);
    client_.SendProgress(done, total).IgnoreError();  // a lost stream is noticed by the reader
  };
  load.cancelled = [&] { return stopping_.load(); };
  ASSIGN_OR_RETURN(shard_.weights,
                   weights::LoadShard(checkpoint_, spec_, plan_, load, shard_.backend->packer()));
  const kv::KvLayout layout = LayoutOf(shard_.weights.shard, spec_, options_);
  return client_.SendLoaded(shard_.weights.total_bytes(), layout.bytes_per_block(),
                            KvBudget(options_, shard_.backend->device()));
}

absl::Status Worker::Start(const StartOrder& order) {
  if (loop_ != nullptr || shard_.weights.layers.empty()) {
    return FailedPrecondition("a start order came out of turn");
  }
  loader_.join();
  comm::ProcessGroup::Options join;
  join.kind = options_.transport;
  join.self = options_.identity.rank;
  join.epoch = order.epoch;
  join.deadline = MonotonicNow() + limits::kJoinGroupPatience;
  join.job_token = options_.job_token;
  join.host_identity = options_.host_identity;
  join.listen_address = options_.listen_address;
  ASSIGN_OR_RETURN(group_, comm::ProcessGroup::Join(options_.topology, client_, join));
  ASSIGN_OR_RETURN(shard_.cache, kv::KvCache::Make(shard_.backend->device(),
                                                   LayoutOf(shard_.weights.shard, spec_, options_),
                                                   order.num_blocks));
  const ModelRunner::Parts parts{.backend = shard_.backend.get(),
                                 .weights = &shard_.weights,
                                 .cache = &*shard_.cache,
                                 .group = group_.get()};
  ModelRunner::Options runner_options{.limits = options_.limits, .epoch = order.epoch};
  runner_options.limits.num_blocks = order.num_blocks;
  ASSIGN_OR_RETURN(runner_, ModelRunner::Make(parts, runner_options));
  loop_ = std::make_unique<StepLoop>(
      *runner_, options_.limits.max_steps_in_flight,
      [this](absl::StatusOr<step::StepResult> result) { Answer(std::move(result)); });
  MemoryReport memory;
  memory.weight_bytes = shard_.weights.total_bytes();
  memory.kv_bytes = shard_.cache->bytes();
  memory.scratch_bytes = runner_->scratch_bytes();
  return client_.SendReady(memory);
}

void Worker::Answer(absl::StatusOr<step::StepResult> result) {
  // A send that fails means that the stream is gone, which the reader of orders finds out too.
  if (result.ok()) {
    client_.SendResult(*result).IgnoreError();
  } else if (!stopping_) {
    client_.SendFailed(result.status()).IgnoreError();
  }
}

void Worker::EndLoading() {
  stopping_ = true;
  if (loader_.joinable()) loader_.join();
}

void Worker::EndEpoch() {
  if (loop_ != nullptr) {
    loop_->Abort(Cancelled("the worker is stopping"));
    loop_->Join();
  }
  loop_.reset();
  runner_.reset();
  group_.reset();
}

}  // namespace

absl::Status RunWorker(WorkerOptions options) {
  ASSIGN_OR_RETURN(plan::ModelSpec spec, plan::ReadModelSpec(options.model_directory));
  ASSIGN_OR_RETURN(plan::ShardPlan plan,
                   plan::ShardPlan::Make(spec, options.topology, options.plan));
  ASSIGN_OR_RETURN(weights::Checkpoint checkpoint,
                   weights::Checkpoint::Open(options.model_directory));
  return Worker(std::move(options), std::move(spec), std::move(plan), std::move(checkpoint)).Run();
}

}  // namespace polyreme::run
