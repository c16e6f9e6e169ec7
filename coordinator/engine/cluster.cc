#include "coordinator/engine/cluster.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "coordinator/engine/cache_size.h"
#include "coordinator/engine/peers.h"
#include "coordinator/engine/result_merger.h"
#include "coordinator/engine/standstill.h"
#include "parallel/base/bounded_queue.h"
#include "parallel/base/clock.h"
#include "parallel/base/limits.h"
#include "parallel/base/log.h"
#include "parallel/base/out_of_memory.h"
#include "parallel/launch/call_proof.h"
#include "parallel/launch/rendezvous.h"
#include "parallel/wire/codec.h"
#include "proto/worker.grpc.pb.h"

namespace polyreme::engine {
namespace {

namespace pb = ::polyreme::cluster::v1;

using Outbox = BoundedQueue<pb::CoordinatorMessage>;
// Start, Stop and every plan that may be in flight.
constexpr size_t kOutboxCapacity = limits::kMaxStepsInFlight + 8;
// Loading has no size known in advance; a rank that reports no progress for this long is stuck.
constexpr absl::Duration kLoadPatience = absl::Seconds(300);
// Until the stream of a rank's former process is seen to have ended.
constexpr absl::Duration kReplacedPeerPatience = absl::Seconds(12);

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), Message(status));
}

}  // namespace

// The listener's service and everything behind it. gRPC's synchronous interface: one thread per
// open call, two per worker.
class Cluster::Impl final : public pb::Cluster::Service, public WorkerLink {
 public:
  explicit Impl(const ClusterOptions& options)
      : options_(options),
        guard_(options.job_token),
        peers_(PeerIdentity{0, options.topology.world_size(), "", 0, options.build_id,
                            options.settings, options.checkpoint, ""},
               options.allow_shared_device, options.incarnation),
        results_(options.topology.world_size(), options.epoch),
        epoch_(options.epoch.value),
        restarts_(options.losses) {
    if (options.incarnation > 1) peers_.SetServed();
  }

  absl::Status Listen();
  std::string address() const { return fmt::format("{}:{}", options_.listen_address, port_); }
  absl::Status WaitUntilReady();
  absl::Status final_failure() const { return peers_.failure(); }
  int32_t num_blocks() const { return num_blocks_; }
  Epoch epoch() const { return Epoch{epoch_.load()}; }
  std::vector<RankReport> reports() const;
  void Stop(const absl::Status& why, absl::Time deadline);

  // For good.
  void Fail(absl::Status why);
  // Costs `epoch` if it still runs and all have served before, otherwise the launch.
  void Lose(Epoch epoch, absl::Status why);
  // The rank's stream is closed. Costs the epoch that runs now, if that counts on the rank.
  void LoseRank(int32_t rank);

  // WorkerLink.
  absl::Status Submit(const step::StepPlan& plan) override;
  absl::StatusOr<step::StepResult> Await(StepId step, absl::Time deadline) override {
    return results_.Await(step, deadline);
  }
  absl::Status failure() const override { return peers_.loss(); }
  absl::StatusOr<Epoch> Recover(const absl::Status& why) override;
  void Abort(Epoch epoch) noexcept override;

  // pb::Cluster::Service.
  grpc::Status Join(grpc::ServerContext* context, const pb::JoinRequest* request,
                    pb::JoinReply* reply) override;
  grpc::Status Put(grpc::ServerContext* context, const pb::PutRequest* request,
                   pb::PutReply* reply) override;
  grpc::Status Wait(grpc::ServerContext* context, const pb::WaitRequest* request,
                    pb::WaitReply* reply) override;
  using WorkerStream = grpc::ServerReaderWriter<pb::CoordinatorMessage, pb::WorkerMessage>;
  grpc::Status Attach(grpc::ServerContext* context, WorkerStream* stream) override;

 private:
  grpc::Status ServeStream(const grpc::ServerContext& context, WorkerStream& stream);
  absl::Status CheckProof(const grpc::ServerContext& context, std::string_view method);
  absl::Status CheckKey(std::string_view key) const;
  // A worker that was with another incarnation, and in which epochs.
  absl::Status NoteKnown(const pb::JoinRequest& request);
  void OnMessage(int32_t rank, const pb::WorkerMessage& message);
  void OnFailed(int32_t rank, const pb::Failed& failed);
  void OnStanding(int32_t rank, const pb::Standing& standing);
  absl::Status WaitUntilLoaded();
  absl::StatusOr<int32_t> NumBlocks() const;
  absl::Status Meet();
  absl::Status StartEpoch();
  absl::Status CountRestart(const absl::Status& why);
  absl::Status TakeOver();
  absl::Status BeginNextEpoch(const absl::Status& why);
  absl::Status Broadcast(const pb::CoordinatorMessage& message);
  void CloseStreams(absl::Time deadline);

  const ClusterOptions options_;
  launch::CallGuard guard_;
  launch::InMemoryRendezvous meeting_;
  Peers peers_;
  ResultMerger results_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
  int32_t num_blocks_ = 0;
  std::mutex epoch_mutex_;  // of changes of the epoch, and of its loss; within mutex_
  std::atomic<int64_t> epoch_;
  std::atomic<int64_t> ending_epoch_ = 0;  // the last that ranks were told to end
  std::vector<absl::Time> restarts_;       // engine thread, or whoever waits until all are ready

  mutable std::mutex mutex_;
  std::condition_variable streams_changed_;
  std::map<int32_t, std::shared_ptr<Outbox>> outboxes_;    // guarded by mutex_; one per open stream
  bool stopping_ = false;                                  // guarded by mutex_
  int64_t known_epoch_ = 0;                                // guarded by mutex_; by any worker
  int64_t standstill_epoch_ = 0;                           // guarded by mutex_
  Standstill standstill_{options_.topology.world_size()};  // guarded by mutex_; of that epoch
};

absl::Status Cluster::Impl::Listen() {
  grpc::ServerBuilder builder;
  builder.AddListeningPort(fmt::format("{}:{}", options_.listen_address, options_.port),
                           grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(this);
  builder.SetMaxReceiveMessageSize(static_cast<int>(limits::kMaxWireMessageBytes));
  builder.SetMaxSendMessageSize(static_cast<int>(limits::kMaxWireMessageBytes));
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 5000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    return Unavailable(
        "cannot listen for workers on {}:{}: the port is taken or the address is not of this host",
        options_.listen_address, options_.port);
  }
  return absl::OkStatus();
}

absl::Status Cluster::Impl::CheckProof(const grpc::ServerContext& context,
                                       std::string_view method) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(launch::kProofHeader);
  const std::string proof =
      found == metadata.end() ? "" : std::string(found->second.data(), found->second.size());
  return guard_.Check(proof, method);
}

grpc::Status Cluster::Impl::Join(grpc::ServerContext* context, const pb::JoinRequest* request,
                                 pb::JoinReply* reply) {
  if (absl::Status s = CheckProof(*context, "Join"); !s.ok()) return ToGrpc(s);
  const PeerIdentity identity{request->rank(),       request->world_size(), request->host(),
                              request->pid(),        request->build_id(),   request->config(),
                              request->checkpoint(), request->device()};
  if (absl::Status s = NoteKnown(*request); !s.ok()) return ToGrpc(s);
  absl::StatusOr<int64_t> ticket = peers_.Join(identity);
  if (absl::IsAlreadyExists(ticket.status()) && peers_.has_served()) {
    // Its agent may know of the former process's end before its stream here does.
    peers_.WaitUntilAbsent(identity.rank, MonotonicNow() + kReplacedPeerPatience);
    ticket = peers_.Join(identity);
  }
  if (!ticket.ok()) return ToGrpc(ticket.status());
  reply->set_epoch(epoch().value);
  reply->set_incarnation(options_.incarnation);
  reply->set_ticket(*ticket);
  reply->set_proof(launch::AnswerChallenge(options_.job_token, request->challenge()));
  return grpc::Status::OK;
}

absl::Status Cluster::Impl::NoteKnown(const pb::JoinRequest& request) {
  if (request.known_incarnation() > options_.incarnation) {
    // Whoever started another in this one's place holds it for dead.
    const absl::Status over = FailedPrecondition(
        "rank {} was with incarnation {} of the coordinator, and this is incarnation {}: its time "
        "is over",
        request.rank(), request.known_incarnation(), options_.incarnation);
    Fail(over);
    return over;
  }
  const std::lock_guard lock(mutex_);
  known_epoch_ = std::max(known_epoch_, request.known_epoch());
  return absl::OkStatus();
}

// A rank that has not yet left an epoch meets nobody any more.
absl::Status Cluster::Impl::CheckKey(std::string_view key) const {
  const std::string prefix = fmt::format("epoch/{}/", epoch().value);
  if (key.starts_with(prefix)) return absl::OkStatus();
  return FailedPrecondition("key '{:.100}': expected one that begins with {}", key, prefix);
}

grpc::Status Cluster::Impl::Put(grpc::ServerContext* context, const pb::PutRequest* request,
                                pb::PutReply*) {
  if (absl::Status s = CheckProof(*context, "Put"); !s.ok()) return ToGrpc(s);
  if (absl::Status s = CheckKey(request->key()); !s.ok()) return ToGrpc(s);
  return ToGrpc(meeting_.Put(request->key(), request->value()));
}

grpc::Status Cluster::Impl::Wait(grpc::ServerContext* context, const pb::WaitRequest* request,
                                 pb::WaitReply* reply) {
  if (absl::Status s = CheckProof(*context, "Wait"); !s.ok()) return ToGrpc(s);
  if (absl::Status s = CheckKey(request->key()); !s.ok()) return ToGrpc(s);
  const absl::Duration patience = std::clamp(absl::Milliseconds(request->patience_ms()),
                                             absl::ZeroDuration(), 2 * limits::kJoinGroupPatience);
  absl::StatusOr<std::string> value = meeting_.Wait(request->key(), MonotonicNow() + patience);
  if (!value.ok()) return ToGrpc(value.status());
  reply->set_value(*std::move(value));
  return grpc::Status::OK;
}

grpc::Status Cluster::Impl::Attach(grpc::ServerContext* context, WorkerStream* stream) {
  grpc::Status status;
  RunOnReserve("a worker's stream", [&] { status = ServeStream(*context, *stream); });
  return status;
}

grpc::Status Cluster::Impl::ServeStream(const grpc::ServerContext& context, WorkerStream& stream) {
  if (absl::Status s = CheckProof(context, "Attach"); !s.ok()) return ToGrpc(s);
  pb::WorkerMessage message;
  if (!stream.Read(&message) || !message.has_attach()) {
    return ToGrpc(InvalidArgument("the first message of a stream must name its rank"));
  }
  const int32_t rank = message.attach().rank();
  if (absl::Status s = peers_.Attach(rank, message.attach().ticket()); !s.ok()) return ToGrpc(s);
  const auto outbox = std::make_shared<Outbox>(kOutboxCapacity);
  {
    const std::lock_guard lock(mutex_);
    outboxes_[rank] = outbox;
  }
  // One writer, one reader: a stream takes one write at a time.
  std::thread writer([&] {
    RunOnReserve("the writer of a worker's stream", [&] {
      absl::StatusOr<pb::CoordinatorMessage> next = outbox->Pop(absl::InfiniteFuture());
      while (next.ok() && stream.Write(*next)) next = outbox->Pop(absl::InfiniteFuture());
    });
  });
  while (stream.Read(&message)) OnMessage(rank, message);
  {
    const std::lock_guard lock(mutex_);
    outboxes_.erase(rank);
    streams_changed_.notify_all();
    if (!stopping_) LoseRank(rank);
  }
  // Before another may take its place.
  outbox->Close(Cancelled("the stream is closed"));
  writer.join();
  peers_.SetAbsent(rank);
  return grpc::Status::OK;
}

void Cluster::Impl::OnMessage(int32_t rank, const pb::WorkerMessage& message) {
  switch (message.body_case()) {
    case pb::WorkerMessage::kProgress:
      return peers_.SetProgress(rank, message.progress().bytes_done(),
                                message.progress().bytes_total());
    case pb::WorkerMessage::kLoaded:
      return peers_.SetLoaded(
          rank, message.loaded().weight_bytes(), message.loaded().kv_bytes_per_block(),
          message.loaded().kv_bytes_budget(), message.loaded().num_blocks_held());
    case pb::WorkerMessage::kReady: {
      const pb::Ready& ready = message.ready();
      if (ready.epoch() != epoch().value) return;
      return peers_.SetReady(
          rank, {ready.weight_bytes(), ready.kv_bytes(), ready.step_bytes(),
                 ready.communicator_bytes(), ready.recording_bytes(), ready.free_bytes(),
                 ready.num_recorded(), ready.recording_seconds(), ready.predicted_bytes(),
                 ready.used_bytes(), ready.predicted_weight_bytes()});
    }
    case pb::WorkerMessage::kStepResult: {
      // Read first: a mistake does not count against an epoch that begins meanwhile.
      const Epoch now = epoch();
      absl::StatusOr<step::StepResult> result = wire::DecodeResult(message.step_result());
      if (!result.ok()) return Lose(now, Annotate(result.status(), peers_.NameOf(rank)));
      // A worker that runs wild costs the epoch as one that is lost.
      absl::Status added = results_.Add(Rank{rank}, *std::move(result));
      if (!added.ok()) Lose(now, std::move(added));
      return;
    }
    case pb::WorkerMessage::kFailed:
      return OnFailed(rank, message.failed());
    case pb::WorkerMessage::kEpochEnded:
      if (message.epoch_ended().epoch() == ending_epoch_) peers_.SetEpochEnded(rank);
      return;
    case pb::WorkerMessage::kStanding:
      return OnStanding(rank, message.standing());
    default:
      return Lose(epoch(), Internal("{} sent a message that is out of place", peers_.NameOf(rank)));
  }
}

void Cluster::Impl::OnFailed(int32_t rank, const pb::Failed& failed) {
  absl::Status why =
      Annotate(MakeStatus(static_cast<absl::StatusCode>(failed.code()), failed.message()),
               peers_.NameOf(rank));
  // A rank that cannot load has nothing that another epoch would help.
  if (failed.epoch() == 0) return Fail(std::move(why));
  Lose(Epoch{failed.epoch()}, std::move(why));
}

void Cluster::Impl::OnStanding(int32_t rank, const pb::Standing& standing) {
  const Epoch now = epoch();
  if (standing.epoch() != now.value) return;
  const std::vector<bool> idle = results_.IdleRanks();
  std::optional<std::string> verdict;
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(standstill_epoch_, now.value) != now.value) {
      standstill_.Restart(options_.topology.world_size());
    }
    verdict = standstill_.Report(rank, standing.peer(), absl::Milliseconds(standing.waited_ms()),
                                 idle, MonotonicNow());
  }
  if (verdict.has_value()) Lose(now, Unavailable("{}", *verdict));
}

// Under the lock: who has seen the epoch run must not lose the next one, where several tell of one
// loss.
void Cluster::Impl::Lose(Epoch lost, absl::Status why) {
  const std::lock_guard lock(epoch_mutex_);
  if (lost != epoch()) return;
  if (!peers_.Lose(why)) return Fail(std::move(why));
  results_.Fail(why);
  meeting_.Fence(fmt::format("epoch/{}/", lost.value), std::move(why));
}

// The epoch is read first: one that begins meanwhile does not count on the rank, which has to come
// to it anew, and one death would cost it too.
void Cluster::Impl::LoseRank(int32_t rank) {
  const Epoch lost = epoch();
  if (peers_.has_served() && !peers_.HasLoaded(rank)) return;
  Lose(lost, Unavailable("{} was lost: its stream closed", peers_.NameOf(rank)));
}

void Cluster::Impl::Fail(absl::Status why) {
  CHECK(!why.ok());
  results_.Fail(why);
  meeting_.Close(why);
  peers_.Fail(std::move(why));
}

absl::Status Cluster::Impl::WaitUntilLoaded() {
  int64_t last_done = -1;
  absl::Time last_change = MonotonicNow();
  for (;;) {
    const absl::Status status =
        peers_.WaitFor(Peers::Phase::kLoaded, MonotonicNow() + absl::Seconds(1));
    if (status.ok() || !absl::IsDeadlineExceeded(status)) return status;
    int64_t done = 0;
    int64_t total = 0;
    for (const Peers::Peer& peer : peers_.snapshot()) {
      done += peer.bytes_done;
      total += peer.bytes_total;
    }
    if (done != last_done) {
      last_done = done;
      last_change = MonotonicNow();
      if (total > 0) {
        LogInfo("loading weights: {:3.0f} % of {:.2f} GiB", 100.0 * double(done) / double(total),
                double(total) / 0x1p30);
      }
    } else if (MonotonicNow() - last_change > kLoadPatience) {
      return status;
    }
  }
}

absl::StatusOr<int32_t> Cluster::Impl::NumBlocks() const {
  return ChooseNumBlocks(peers_.snapshot(),
                         {options_.num_blocks, options_.num_blocks_min, options_.num_blocks_max});
}

absl::Status Cluster::Impl::WaitUntilReady() {
  if (options_.incarnation > 1) return TakeOver();
  RETURN_IF_ERROR(peers_.WaitFor(Peers::Phase::kAttached, MonotonicNow() + options_.join_timeout));
  LogInfo("all {} ranks have joined ({})", options_.topology.world_size(),
          options_.topology.ToString());
  const absl::Time started = MonotonicNow();
  RETURN_IF_ERROR(WaitUntilLoaded());
  LogInfo("all ranks have loaded their weights in {:.1f} s",
          absl::ToDoubleSeconds(MonotonicNow() - started));
  ASSIGN_OR_RETURN(num_blocks_, NumBlocks());
  RETURN_IF_ERROR(StartEpoch());
  peers_.SetServed();
  return absl::OkStatus();
}

absl::Status Cluster::Impl::TakeOver() {
  const absl::Time begin = MonotonicNow();
  absl::Status status = CountRestart(
      Unavailable("incarnation {} of the coordinator is gone", options_.incarnation - 1));
  if (!status.ok()) {
    Fail(status);
    return status;
  }
  if (status = Meet(); !status.ok()) return Recover(status).status();
  LogInfo("incarnation {} of the coordinator: epoch {} serves, after {:.2f} s",
          options_.incarnation, epoch().value, absl::ToDoubleSeconds(MonotonicNow() - begin));
  return absl::OkStatus();
}

// Waits for all ranks, whoever of them has to load, and starts the epoch with them.
absl::Status Cluster::Impl::Meet() {
  RETURN_IF_ERROR(peers_.WaitFor(Peers::Phase::kAttached, MonotonicNow() + options_.join_timeout));
  RETURN_IF_ERROR(WaitUntilLoaded());
  if (num_blocks_ == 0) {
    const absl::StatusOr<int32_t> chosen = NumBlocks();
    if (!chosen.ok()) {
      Fail(chosen.status());  // another epoch would not help
      return chosen.status();
    }
    num_blocks_ = *chosen;
  }
  RETURN_IF_ERROR(StartEpoch());
  results_.Restart(epoch());
  return peers_.loss();  // one that came before the restart is not forgotten
}

// All ranks have loaded: they meet, and are told once all are ready.
absl::Status Cluster::Impl::StartEpoch() {
  {
    const std::scoped_lock lock(mutex_, epoch_mutex_);
    epoch_ = std::max(epoch_.load(), known_epoch_ + 1);
  }
  options_.on_epoch(epoch(), restarts_);
  pb::CoordinatorMessage start;
  start.mutable_start()->set_epoch(epoch().value);
  start.mutable_start()->set_num_blocks(num_blocks_);
  RETURN_IF_ERROR(Broadcast(start));
  RETURN_IF_ERROR(
      peers_.WaitFor(Peers::Phase::kReady, MonotonicNow() + 2 * limits::kJoinGroupPatience));
  pb::CoordinatorMessage serving;
  serving.mutable_serving()->set_epoch(epoch().value);
  return Broadcast(serving);
}

absl::Status Cluster::Impl::CountRestart(const absl::Status& why) {
  const absl::Time now = MonotonicNow();
  std::erase_if(restarts_, [&](absl::Time t) { return now - t > options_.restart_window; });
  if (options_.max_restarts == 0) return why;
  if (std::ssize(restarts_) >= options_.max_restarts) {
    return MakeStatus(
        why.code(),
        fmt::format("{} ({} losses within {} before it are as many as --max-restarts "
                    "allows)",
                    Message(why), restarts_.size(), absl::FormatDuration(options_.restart_window)));
  }
  restarts_.push_back(now);
  return absl::OkStatus();
}

// The old epoch is over here before anybody is told, so that nothing of it counts any more.
absl::Status Cluster::Impl::BeginNextEpoch(const absl::Status& why) {
  const Epoch lost = epoch();
  Lose(lost, why);
  {
    const std::lock_guard lock(epoch_mutex_);
    ending_epoch_ = lost.value;
    ++epoch_;
    peers_.NextEpoch();
  }
  RETURN_IF_ERROR(peers_.failure());
  pb::CoordinatorMessage end;
  end.mutable_end_epoch()->set_epoch(lost.value);
  end.mutable_end_epoch()->set_code(static_cast<int32_t>(why.code()));
  end.mutable_end_epoch()->set_reason(Message(why));
  return Broadcast(end);
}

absl::StatusOr<Epoch> Cluster::Impl::Recover(const absl::Status& why) {
  const absl::Time begin = MonotonicNow();
  absl::Status loss = why;
  do {
    absl::Status status = peers_.failure();
    if (status.ok()) status = CountRestart(loss);
    if (!status.ok()) {
      Fail(status);
      return status;
    }
    LogWarning("epoch {} is lost: {}; waiting for all ranks", epoch().value, Message(loss));
    loss = BeginNextEpoch(loss);
    if (loss.ok()) loss = Meet();
  } while (!loss.ok());
  LogInfo("epoch {} serves, after {:.2f} s", epoch().value,
          absl::ToDoubleSeconds(MonotonicNow() - begin));
  return epoch();
}

std::vector<RankReport> Cluster::Impl::reports() const {
  std::vector<RankReport> reports;
  for (const Peers::Peer& peer : peers_.snapshot()) {
    reports.push_back(
        RankReport{Rank{peer.identity.rank}, peer.identity.host, peer.identity.pid, peer.memory});
  }
  return reports;
}

absl::Status Cluster::Impl::Broadcast(const pb::CoordinatorMessage& message) {
  const std::lock_guard lock(mutex_);
  for (const auto& [rank, outbox] : outboxes_) {
    RETURN_IF_ERROR(Annotate(outbox->TryPush(message), fmt::format("to rank {}", rank)));
  }
  return absl::OkStatus();
}

absl::Status Cluster::Impl::Submit(const step::StepPlan& plan) {
  RETURN_IF_ERROR(results_.Expect(plan.id));
  pb::CoordinatorMessage message;
  message.set_step_plan(wire::EncodePlan(plan));
  return Broadcast(message);
}

void Cluster::Impl::Abort(Epoch epoch) noexcept {
  if (epoch <= this->epoch()) Fail(Unavailable("epoch {} was aborted", epoch.value));
}

void Cluster::Impl::Stop(const absl::Status& why, absl::Time deadline) {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  const absl::Status end = why.ok() ? Cancelled("the cluster is stopping") : why;
  results_.Fail(end);
  meeting_.Close(end);
  peers_.Fail(end);
  pb::CoordinatorMessage message;
  message.mutable_stop()->set_code(static_cast<int32_t>(why.code()));
  message.mutable_stop()->set_reason(Message(why));
  // A worker that cannot take the word is ended by its own stream's end.
  if (absl::Status s = Broadcast(message); !s.ok()) LogWarning("stopping: {}", Message(s));
  CloseStreams(deadline);
}

void Cluster::Impl::CloseStreams(absl::Time deadline) {
  {
    std::unique_lock lock(mutex_);
    streams_changed_.wait_until(lock, ToSteady(deadline), [&] { return outboxes_.empty(); });
  }
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  server_.reset();
}

Cluster::Cluster(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Cluster::~Cluster() {
  impl_->Stop(absl::OkStatus(), MonotonicNow());
}

absl::StatusOr<std::unique_ptr<Cluster>> Cluster::Listen(const ClusterOptions& options) {
  auto impl = std::make_unique<Impl>(options);
  RETURN_IF_ERROR(impl->Listen());
  return std::unique_ptr<Cluster>(new Cluster(std::move(impl)));
}

std::string Cluster::address() const {
  return impl_->address();
}
absl::Status Cluster::WaitUntilReady() {
  return impl_->WaitUntilReady();
}
void Cluster::Cancel(absl::Status why) {
  impl_->Fail(std::move(why));
}
absl::Status Cluster::failure() const {
  return impl_->final_failure();
}
int32_t Cluster::num_blocks() const {
  return impl_->num_blocks();
}
Epoch Cluster::epoch() const {
  return impl_->epoch();
}
std::vector<RankReport> Cluster::reports() const {
  return impl_->reports();
}
WorkerLink& Cluster::link() {
  return *impl_;
}
void Cluster::Stop(const absl::Status& why, absl::Time deadline) {
  impl_->Stop(why, deadline);
}

}  // namespace polyreme::engine
