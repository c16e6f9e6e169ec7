#include "worker/run/worker_service.h"

#include <sys/prctl.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "absl/synchronization/notification.h"
#include "parallel/base/clock.h"
#include "parallel/base/limits.h"
#include "parallel/base/log.h"
#include "parallel/plan/model_spec.h"
#include "worker/kv/kv_cache.h"
#include "worker/run/coordinator_link.h"
#include "worker/run/model_runner.h"
#include "worker/run/rank_memory.h"
#include "worker/run/stand_watch.h"
#include "worker/run/step_loop.h"
#include "worker/weights/shard_loader.h"

namespace polyreme::run {
namespace {

// What outlives an epoch: the device, the shard of the weights, the pool of blocks.
struct Shard {
  std::unique_ptr<backend::Backend> backend;
  weights::ShardWeights weights;
  std::optional<kv::KvCache> cache;
};

absl::StatusOr<int64_t> KvBudget(const WorkerOptions& options, const RankSetup& setup,
                                 const weights::ShardWeights& weights, const Device& device) {
  if (options.kv_bytes_budget > 0) return options.kv_bytes_budget;
  if (options.memory_utilization <= 0) {
    // A quarter leaves room for the system, the page cache of the checkpoint, and other programs.
    return device.FreeBytes() / 4 / std::max(1, options.ranks_on_host);
  }
  if (options.limits.num_blocks > 0) return 0;  // by hand, whatever memory says
  CacheShare share =
      EmptyDeviceShare(setup, RankMemoryOf(setup), device.TotalBytes(), options.memory_utilization);
  share.free_bytes = device.FreeBytes();
  share.weight_bytes = weights.total_bytes();
  share.ranks_on_device = options.ranks_on_device;
  return CacheBudget(share);
}

// Without a tensor, a page from the disk or work (LoadWatch), until the rank is replaced. A device
// may take long to begin, and says nothing meanwhile.
constexpr absl::Duration kLoadPatience = absl::Seconds(20);
constexpr absl::Duration kBackendPatience = absl::Seconds(120);
// For a start to end once its group is aborted.
constexpr absl::Duration kStarterPatience = absl::Seconds(1);
// For a rank to leave a lost epoch; then another process takes its place.
constexpr absl::Duration kEpochEndPatience = absl::Seconds(5);
// On a GPU a sum over registered windows does not look at the flag that aborts it: when a peer died
// in one, no waiting helps (docs/GOTCHAS.md). Otherwise leaving takes milliseconds.
constexpr absl::Duration kGpuEpochEndPatience = absl::Seconds(1);

class Worker {
 public:
  Worker(WorkerOptions options, plan::ModelSpec spec, plan::ShardPlan plan,
         std::unique_ptr<weights::TensorSource> source)
      : options_(std::move(options)),
        spec_(std::move(spec)),
        plan_(std::move(plan)),
        source_(std::move(source)),
        link_(options_.coordinator, options_.job_token, Identity()) {}
  ~Worker() {
    EndLoading();
    EndEpoch();
  }

  absl::Status Run();
  bool abandoned() const { return abandoned_; }
  // Whether the device may still be busy with a group that was ended: giving memory back, or
  // anything else that waits for it, could then take for ever.
  bool DeviceMayHang() const {
    return shard_.backend != nullptr && shard_.backend->communicators() != nullptr;
  }

 private:
  JoinInfo Identity() const;
  absl::StatusOr<LoadedReport> Load();
  absl::Status ReadOrders();
  bool MayRejoin() const;
  absl::Status Rejoin(const absl::Status& why);
  absl::Status LeaveEpoch(const absl::Status& why);
  absl::Status OnStart(const StartOrder& order);
  absl::Status OnEndEpoch(const EndEpochOrder& order);
  absl::Status Submit(step::StepPlan plan);
  absl::Status Start(const StartOrder& order);
  absl::Status JoinGroup(Epoch epoch);
  // Once the backend is there.
  RankSetup Setup() const;
  MemoryReport Report() const;
  void Answer(Epoch epoch, absl::StatusOr<step::StepResult> result);
  void EndLoading();
  void EndSteps();
  void EndEpoch();

  const WorkerOptions options_;
  const plan::ModelSpec spec_;
  const plan::ShardPlan plan_;
  const std::unique_ptr<weights::TensorSource> source_;
  CoordinatorLink link_;
  bool has_served_ = false;        // the reader's
  bool coordinator_gone_ = false;  // the reader's; its stream has ended without a stop

  std::thread loader_;
  std::atomic<bool> stopping_ = false;
  Shard shard_;  // the loader's until it is joined
  // One epoch, each over those before it: made by the starter, ended by the reader of orders once
  // the starter is joined. Meanwhile the reader touches only what the mutex guards: it aborts the
  // group under a starter that waits for peers in it.
  std::thread starter_;
  std::unique_ptr<absl::Notification> started_;  // or failed
  Epoch epoch_{0};                               // the reader's; the last that was started
  std::atomic<bool> ending_ = false;             // that epoch is lost
  bool abandoned_ = false;                       // the starter still runs, and always will
  int64_t communicator_bytes_ = 0;
  std::mutex mutex_;
  comm::WaitBoard board_;                      // of the loop's step thread
  std::unique_ptr<comm::ProcessGroup> group_;  // set under mutex_
  std::unique_ptr<ModelRunner> runner_;
  std::unique_ptr<StepLoop> loop_;  // set under mutex_
  std::unique_ptr<StandWatch> stand_watch_;
};

JoinInfo Worker::Identity() const {
  JoinInfo identity = options_.identity;
  identity.checkpoint = source_->fingerprint();
  return identity;
}

absl::Status Worker::Run() {
  using Effort = CoordinatorLink::Effort;
  RETURN_IF_ERROR(link_.DialIn(MonotonicNow() + options_.join_timeout,
                               options_.takes_over ? Effort::kPersistently : Effort::kOnce));
  // Orders are read meanwhile, so that a stop is heard.
  loader_ = std::thread([this] {
    absl::StatusOr<LoadedReport> loaded = Load();
    if (options_.load_watch != nullptr) options_.load_watch->End();
    if (!loaded.ok() && stopping_) return;
    link_.TellLoaded(std::move(loaded), [this] {
      return shard_.cache.has_value() ? static_cast<int32_t>(shard_.cache->num_blocks()) : 0;
    });
  });
  absl::Status status = ReadOrders();
  while (coordinator_gone_ && MayRejoin()) {
    status = Rejoin(status);
    if (status.ok()) status = ReadOrders();
  }
  if (abandoned_) return status;  // another process takes its place
  EndLoading();
  if (!abandoned_) EndSteps();
  if (status.ok() && !abandoned_) EndEpoch();
  link_.client()->Finish();
  return status;
}

bool Worker::MayRejoin() const {
  return (has_served_ || options_.takes_over) && options_.rejoin_timeout > absl::ZeroDuration();
}

// The agent of a lost coordinator starts another at its address.
absl::Status Worker::Rejoin(const absl::Status& why) {
  coordinator_gone_ = false;
  LogWarning("{}; waiting for another to take its place", Message(why));
  link_.client()->Close();
  RETURN_IF_ERROR(LeaveEpoch(why));
  absl::Status status = link_.DialIn(MonotonicNow() + options_.rejoin_timeout,
                                     CoordinatorLink::Effort::kPersistently);
  if (!status.ok()) return Annotate(status, Message(why));
  LogInfo("joined incarnation {} of the coordinator, {}", link_.incarnation(),
          link_.has_loaded() ? "with the weights that are here" : "while loading");
  return absl::OkStatus();
}

// Ends with the coordinator's stop order, or when it is gone. Whatever goes wrong here is first
// told to the coordinator, which decides that the launch ends and says so to every rank, this one
// included.
absl::Status Worker::ReadOrders() {
  for (;;) {
    absl::StatusOr<Order> read = link_.client()->Read();
    if (!read.ok()) {
      coordinator_gone_ = absl::IsUnavailable(read.status());
      return read.status();
    }
    Order order = *std::move(read);
    if (const auto* stop = std::get_if<StopOrder>(&order)) {
      if (stop->why.ok()) return absl::OkStatus();
      const absl::Status why = Annotate(stop->why, "the launch ended");
      // That code would ask for a successor.
      return absl::IsAborted(why) ? Unavailable("{}", Message(why)) : why;
    }
    if (const auto* end = std::get_if<EndEpochOrder>(&order)) {
      RETURN_IF_ERROR(OnEndEpoch(*end));
      continue;
    }
    if (std::holds_alternative<ServingOrder>(order)) {
      has_served_ = true;
      options_.on_serving();
      continue;
    }
    const auto* const start = std::get_if<StartOrder>(&order);
    const absl::Status status =
        start != nullptr ? OnStart(*start) : Submit(std::get<step::StepPlan>(std::move(order)));
    if (!status.ok()) {
      link_.client()->SendFailed(start != nullptr ? start->epoch : epoch_, status).IgnoreError();
    }
  }
}

// Starting takes a while and waits for peers; orders are read meanwhile, so that a stop is heard.
absl::Status Worker::OnStart(const StartOrder& order) {
  if (starter_.joinable() || !link_.has_loaded()) {
    return FailedPrecondition("a start order came out of turn");
  }
  RETURN_IF_ERROR(link_.Admit(order.epoch));
  epoch_ = order.epoch;
  ending_ = false;
  started_ = std::make_unique<absl::Notification>();
  starter_ = std::thread([this, order] {
    const absl::Status status = Start(order);
    if (!status.ok() && !stopping_) {
      link_.client()->SendFailed(order.epoch, status).IgnoreError();
    }
    started_->Notify();
  });
  return absl::OkStatus();
}

// A rank that came after the epoch was lost has nothing of it: it says so once it has loaded, or by
// having loaded.
absl::Status Worker::OnEndEpoch(const EndEpochOrder& order) {
  link_.NoteEpoch(order.epoch);
  if (!link_.has_loaded()) return absl::OkStatus();
  LogInfo("epoch {} is lost: {}", order.epoch.value, Message(order.why));
  RETURN_IF_ERROR(LeaveEpoch(order.why));
  link_.client()->SendEpochEnded(order.epoch).IgnoreError();  // a lost stream ends the next read
  return absl::OkStatus();
}

// Takes down what belongs to the epoch; shard and cache stay.
absl::Status Worker::LeaveEpoch(const absl::Status& why) {
  ending_ = true;
  auto ended = std::make_shared<absl::Notification>();
  std::thread ender([this, ended, why] {
    {
      const std::lock_guard lock(mutex_);
      if (group_ != nullptr) group_->Abort(why);
    }
    if (starter_.joinable()) starter_.join();
    if (loop_ != nullptr) loop_->Abort(why);
    EndEpoch();
    ended->Notify();
  });
  const absl::Duration patience =
      options_.backend == "cpu" ? kEpochEndPatience : kGpuEpochEndPatience;
  const bool has_ended = ended->WaitForNotificationWithTimeout(patience);
  options_.on_epoch_lost(why);
  if (!has_ended) {
    ender.detach();
    abandoned_ = true;
    return MakeStatus(
        absl::StatusCode::kAborted,
        fmt::format("rank {} could not leave epoch {} within {}", options_.identity.rank.value,
                    epoch_.value, absl::FormatDuration(patience)));
  }
  ender.join();
  return absl::OkStatus();
}

absl::Status Worker::Submit(step::StepPlan plan) {
  const std::lock_guard lock(mutex_);
  if (loop_ == nullptr) return FailedPrecondition("a step came before the start order");
  return loop_->Submit(std::move(plan));
}

absl::StatusOr<LoadedReport> Worker::Load() {
  const auto mark = [this](int64_t done, int64_t total, absl::Duration patience) {
    if (options_.load_watch != nullptr) options_.load_watch->Mark(done, total, patience);
  };
  mark(0, 0, kBackendPatience);
  ASSIGN_OR_RETURN(shard_.backend,
                   backend::MakeBackend(options_.backend, options_.backend_options));
  weights::LoadOptions load;
  load.rank = options_.identity.rank;
  load.positions = options_.limits.max_model_len;
  mark(0, 0, kLoadPatience);
  prctl(PR_SET_NAME, "loader");  // in top -H; the backend has its threads already
  absl::Time next_report = MonotonicNow();
  load.progress = [&](int64_t done, int64_t total) {
    mark(done, total, kLoadPatience);
    if (MonotonicNow() < next_report && done < total) return;
    next_report = MonotonicNow() + absl::Milliseconds(250);
    link_.client()
        ->SendProgress(done, total)
        .IgnoreError();  // a lost stream is noticed by the reader
  };
  load.cancelled = [&] { return stopping_.load(); };
  const absl::Time begin = MonotonicNow();
  ASSIGN_OR_RETURN(shard_.weights,
                   weights::LoadShard(*source_, spec_, plan_, load, shard_.backend->packer()));
  const double seconds = absl::ToDoubleSeconds(MonotonicNow() - begin);
  const auto bytes = static_cast<double>(shard_.weights.total_bytes());
  LogInfo("weights: {:.1f} GiB in {:.2f} s, {:.1f} GB/s", bytes / 0x1p30, seconds,
          bytes / 1e9 / seconds);
  const RankSetup setup = Setup();
  ASSIGN_OR_RETURN(const int64_t budget,
                   KvBudget(options_, setup, shard_.weights, shard_.backend->device()));
  return LoadedReport{shard_.weights.total_bytes(), KvLayoutOf(setup).bytes_per_block(), budget};
}

absl::Status Worker::JoinGroup(Epoch epoch) {
  comm::ProcessGroup::Options join;
  join.nccl = shard_.backend->communicators();
  join.kind = join.nccl != nullptr ? comm::ProcessGroup::Kind::kNccl : options_.transport;
  join.self = options_.identity.rank;
  join.epoch = epoch;
  join.deadline = MonotonicNow() + limits::kJoinGroupPatience;
  join.job_token = options_.job_token;
  join.host_identity = options_.host_identity;
  join.listen_address = options_.listen_address;
  join.recorder = options_.recorder;
  join.board = &board_;
  board_.Moved();  // a wait of the epoch before is over, however it ended
  if (join.recorder != nullptr) join.recorder->BeginEpoch(epoch);
  const int64_t free_before = shard_.backend->device().FreeBytes();
  const std::shared_ptr<ClusterClient> meeting = link_.client();
  ASSIGN_OR_RETURN(std::unique_ptr<comm::ProcessGroup> group,
                   comm::ProcessGroup::Join(options_.topology, *meeting, join));
  // Only a device's own communicators take of its memory.
  if (join.nccl != nullptr) {
    communicator_bytes_ = std::max<int64_t>(0, free_before - shard_.backend->device().FreeBytes());
  }
  const std::lock_guard lock(mutex_);
  if (stopping_ || ending_) return Cancelled("the epoch is lost or the worker is stopping");
  group_ = std::move(group);
  return absl::OkStatus();
}

absl::Status Worker::Start(const StartOrder& order) {
  if (loader_.joinable()) loader_.join();
  RETURN_IF_ERROR(JoinGroup(order.epoch));
  if (!shard_.cache.has_value()) {
    ASSIGN_OR_RETURN(shard_.cache, kv::KvCache::Make(shard_.backend->device(), KvLayoutOf(Setup()),
                                                     order.num_blocks));
  } else if (shard_.cache->num_blocks() != order.num_blocks) {
    return FailedPrecondition("expected to start with the {} cache blocks that are here, got {}",
                              shard_.cache->num_blocks(), order.num_blocks);
  }
  const ModelRunner::Parts parts{.backend = shard_.backend.get(),
                                 .weights = &shard_.weights,
                                 .cache = &*shard_.cache,
                                 .group = group_.get(),
                                 .recorder = options_.recorder};
  ModelRunner::Options runner_options{.limits = options_.limits,
                                      .epoch = order.epoch,
                                      .head_chunk_samples = options_.head_chunk_samples};
  runner_options.limits.num_blocks = order.num_blocks;
  ASSIGN_OR_RETURN(runner_, ModelRunner::Make(parts, runner_options));
  {
    const std::lock_guard lock(mutex_);
    if (stopping_ || ending_) return Cancelled("the epoch is lost or the worker is stopping");
    loop_ = std::make_unique<StepLoop>(
        *runner_, options_.limits.max_steps_in_flight,
        [this, epoch = order.epoch](absl::StatusOr<step::StepResult> result) {
          Answer(epoch, std::move(result));
        });
  }
  stand_watch_ = std::make_unique<StandWatch>(
      [this] { return board_.Read(); },
      [this, epoch = order.epoch](int32_t peer, absl::Duration waited) {
        // A lost stream is noticed by the reader.
        link_.client()->SendStanding(epoch, peer, waited).IgnoreError();
      });
  return link_.client()->SendReady(order.epoch, Report());
}

RankSetup Worker::Setup() const {
  return {.spec = &spec_,
          .plan = &plan_,
          .rank = options_.identity.rank,
          .limits = options_.limits,
          .device = shard_.backend->kind(),
          .kv_dtype = options_.plan.kv_dtype,
          .head_chunk_samples = options_.head_chunk_samples};
}

MemoryReport Worker::Report() const {
  MemoryReport memory;
  memory.weight_bytes = shard_.weights.total_bytes();
  memory.kv_bytes = shard_.cache->bytes();
  memory.step_bytes = runner_->memory().device_bytes();
  memory.communicator_bytes = communicator_bytes_;
  memory.recording_bytes = runner_->recording().bytes;
  memory.free_bytes = shard_.backend->device().FreeBytes();
  memory.num_recorded = runner_->recording().num_recorded;
  memory.recording_time = runner_->recording().time;
  const RankMemory predicted = RankMemoryOf(Setup());
  memory.predicted_bytes = predicted.TotalBytes(shard_.cache->num_blocks());
  memory.predicted_weight_bytes = predicted.weights.total();
  // Of a device that several ranks share, the others' part cannot be told from one's own.
  memory.used_bytes = options_.ranks_on_device > 1
                          ? memory.weight_bytes + memory.kv_bytes + memory.step_bytes +
                                memory.communicator_bytes + memory.recording_bytes +
                                predicted.context_bytes
                          : shard_.backend->device().UsedBytes();
  return memory;
}

void Worker::Answer(Epoch epoch, absl::StatusOr<step::StepResult> result) {
  // A send that fails means that the stream is gone, which the reader of orders finds out too.
  if (result.ok()) {
    link_.client()->SendResult(*result).IgnoreError();
  } else if (!stopping_ && !ending_) {
    link_.client()->SendFailed(epoch, result.status()).IgnoreError();
  }
}

// The starter joins the loader when there is one. A starter that waits for a device which no longer
// comes to an end is left behind.
void Worker::EndLoading() {
  stopping_ = true;
  {
    const std::lock_guard lock(mutex_);
    if (group_ != nullptr && loop_ == nullptr) group_->Abort(Cancelled("the worker is stopping"));
  }
  if (starter_.joinable()) {
    if (!started_->WaitForNotificationWithTimeout(kStarterPatience) && DeviceMayHang()) {
      abandoned_ = true;
      return starter_.detach();
    }
    starter_.join();
  }
  if (loader_.joinable()) loader_.join();
}

void Worker::EndSteps() {
  stand_watch_.reset();
  if (loop_ == nullptr) return;
  loop_->Abort(Cancelled("the worker is stopping"));
  loop_->Join();
}

void Worker::EndEpoch() {
  EndSteps();
  loop_.reset();
  // Before the group: a communicator ends only when no recording holds its operations any more.
  runner_.reset();
  group_.reset();
}

}  // namespace

absl::Status RunWorker(WorkerOptions options) {
  ASSIGN_OR_RETURN(plan::ModelSpec spec, plan::ReadModelSpec(options.model_directory));
  ASSIGN_OR_RETURN(plan::ShardPlan plan,
                   plan::ShardPlan::Make(spec, options.topology, options.plan));
  ASSIGN_OR_RETURN(
      std::unique_ptr<weights::TensorSource> source,
      weights::OpenTensorSource(options.model_directory, spec, options.load_format, options.seed));
  auto worker = std::make_unique<Worker>(std::move(options), std::move(spec), std::move(plan),
                                         std::move(source));
  const absl::Status status = worker->Run();
  if (worker->abandoned() || (!status.ok() && worker->DeviceMayHang())) (void)worker.release();
  return status;
}

}  // namespace polyreme::run
