#include "worker/run/cluster_client.h"

#include <grpcpp/grpcpp.h>

#include <mutex>
#include <set>

#include "parallel/base/clock.h"
#include "parallel/base/limits.h"
#include "parallel/launch/call_proof.h"
#include "parallel/launch/job_token.h"
#include "parallel/wire/codec.h"
#include "proto/worker.grpc.pb.h"

namespace polyreme::run {
namespace {

namespace pb = ::polyreme::cluster::v1;

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return MakeStatus(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 5000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetMaxReceiveMessageSize(static_cast<int>(limits::kMaxWireMessageBytes));
  arguments.SetMaxSendMessageSize(static_cast<int>(limits::kMaxWireMessageBytes));
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace

class ClusterClient::Impl {
 public:
  Impl(const std::string& address, std::string job_token)
      : address_(address),
        job_token_(std::move(job_token)),
        stub_(pb::Cluster::NewStub(MakeChannel(address))) {}

  void Prepare(grpc::ClientContext& context, const char* method, absl::Time deadline) const {
    context.AddMetadata(launch::kProofHeader, launch::MakeCallProof(job_token_, method));
    if (deadline != absl::InfiniteFuture()) {
      context.set_deadline(std::chrono::system_clock::now() +
                           absl::ToChronoNanoseconds(deadline - MonotonicNow()));
    }
  }

  absl::StatusOr<JoinedCluster> Join(const JoinInfo& info, absl::Time deadline) {
    grpc::ClientContext context;
    Prepare(context, "Join", deadline);
    context.set_wait_for_ready(true);
    pb::JoinRequest request;
    request.set_rank(info.rank.value);
    request.set_world_size(info.world_size);
    request.set_host(info.host);
    request.set_pid(info.pid);
    request.set_build_id(info.build_id);
    request.set_config(info.settings);
    request.set_checkpoint(info.checkpoint);
    request.set_device(info.device);
    request.set_known_epoch(info.known_epoch.value);
    request.set_known_incarnation(info.known_incarnation);
    request.set_challenge(launch::MakeJobToken());
    pb::JoinReply reply;
    const absl::Status status = FromGrpc(stub_->Join(&context, request, &reply));
    if (absl::IsDeadlineExceeded(status)) {
      return Unavailable("no coordinator answered at {} within the join timeout", address_);
    }
    RETURN_IF_ERROR(status);
    if (reply.proof() != launch::AnswerChallenge(job_token_, request.challenge())) {
      return Unauthenticated("what listens at {} does not know this job's token", address_);
    }
    return JoinedCluster{Epoch{reply.epoch()}, reply.incarnation(), reply.ticket()};
  }

  absl::Status Attach(Rank rank, int64_t ticket) {
    Prepare(stream_context_, "Attach", absl::InfiniteFuture());
    stream_ = stub_->Attach(&stream_context_);
    pb::WorkerMessage first;
    first.mutable_attach()->set_rank(rank.value);
    first.mutable_attach()->set_ticket(ticket);
    return Send(first);
  }

  absl::Status Send(const pb::WorkerMessage& message) {
    const std::lock_guard lock(write_mutex_);
    if (finished_ || !stream_->Write(message))
      return Unavailable("the stream to {} has ended", address_);
    return absl::OkStatus();
  }

  absl::StatusOr<Order> Read() {
    pb::CoordinatorMessage message;
    if (!stream_->Read(&message)) return Unavailable("the coordinator at {} is gone", address_);
    switch (message.body_case()) {
      case pb::CoordinatorMessage::kStart:
        return StartOrder{Epoch{message.start().epoch()}, message.start().num_blocks()};
      case pb::CoordinatorMessage::kStepPlan: {
        ASSIGN_OR_RETURN(step::StepPlan plan, wire::DecodePlan(message.step_plan()));
        return Order(std::move(plan));
      }
      case pb::CoordinatorMessage::kStop:
        return StopOrder{MakeStatus(static_cast<absl::StatusCode>(message.stop().code()),
                                    message.stop().reason())};
      case pb::CoordinatorMessage::kEndEpoch: {
        const pb::EndEpoch& end = message.end_epoch();
        return EndEpochOrder{Epoch{end.epoch()},
                             MakeStatus(static_cast<absl::StatusCode>(end.code()), end.reason())};
      }
      case pb::CoordinatorMessage::kServing:
        return ServingOrder{Epoch{message.serving().epoch()}};
      default:
        return Internal("the coordinator sent an empty message");
    }
  }

  void Finish() {
    if (stream_ == nullptr) return;
    {
      const std::lock_guard lock(write_mutex_);
      if (finished_) return;
      finished_ = true;
      stream_->WritesDone();
    }
    stream_context_.TryCancel();
    stream_->Finish();
  }

  // One call of the meeting: `call` gets its context, unless the client is closed.
  template <class Call>
  absl::Status Run(const char* method, absl::Time deadline, Call call) {
    grpc::ClientContext context;
    Prepare(context, method, deadline);
    {
      const std::lock_guard lock(calls_mutex_);
      if (closed_) return Cancelled("the coordinator at {} was left", address_);
      calls_.insert(&context);
    }
    const grpc::Status status = call(*stub_, context);
    const std::lock_guard lock(calls_mutex_);
    calls_.erase(&context);
    return FromGrpc(status);
  }

  void Close() {
    const std::lock_guard lock(calls_mutex_);
    closed_ = true;
    for (grpc::ClientContext* call : calls_) call->TryCancel();
  }

 private:
  const std::string address_;
  const std::string job_token_;
  const std::unique_ptr<pb::Cluster::Stub> stub_;
  grpc::ClientContext stream_context_;
  std::unique_ptr<grpc::ClientReaderWriter<pb::WorkerMessage, pb::CoordinatorMessage>> stream_;
  std::mutex write_mutex_;
  bool finished_ = false;  // guarded by write_mutex_
  std::mutex calls_mutex_;
  std::set<grpc::ClientContext*> calls_;  // guarded by calls_mutex_; that run
  bool closed_ = false;                   // guarded by calls_mutex_
};

ClusterClient::ClusterClient(const std::string& address, std::string job_token)
    : impl_(std::make_unique<Impl>(address, std::move(job_token))) {}
ClusterClient::~ClusterClient() {
  impl_->Finish();
}

absl::StatusOr<JoinedCluster> ClusterClient::Join(const JoinInfo& info, absl::Time deadline) {
  return impl_->Join(info, deadline);
}
absl::Status ClusterClient::Attach(Rank rank, int64_t ticket) {
  return impl_->Attach(rank, ticket);
}

absl::Status ClusterClient::Put(std::string_view key, std::string value) {
  pb::PutRequest request;
  request.set_key(std::string(key));
  request.set_value(std::move(value));
  pb::PutReply reply;
  return impl_->Run("Put", MonotonicNow() + limits::kRpcPatience,
                    [&](pb::Cluster::Stub& stub, grpc::ClientContext& context) {
                      return stub.Put(&context, request, &reply);
                    });
}

absl::StatusOr<std::string> ClusterClient::Wait(std::string_view key, absl::Time deadline) {
  pb::WaitRequest request;
  request.set_key(std::string(key));
  request.set_patience_ms(absl::ToInt64Milliseconds(deadline - MonotonicNow()));
  pb::WaitReply reply;
  // The server ends the wait; the call's own deadline only guards against a server that is gone.
  RETURN_IF_ERROR(impl_->Run("Wait", deadline + limits::kRpcPatience,
                             [&](pb::Cluster::Stub& stub, grpc::ClientContext& context) {
                               return stub.Wait(&context, request, &reply);
                             }));
  return std::move(*reply.mutable_value());
}

absl::StatusOr<Order> ClusterClient::Read() {
  return impl_->Read();
}

absl::Status ClusterClient::SendProgress(int64_t bytes_done, int64_t bytes_total) {
  pb::WorkerMessage message;
  message.mutable_progress()->set_bytes_done(bytes_done);
  message.mutable_progress()->set_bytes_total(bytes_total);
  return impl_->Send(message);
}

absl::Status ClusterClient::SendLoaded(const LoadedReport& report) {
  pb::WorkerMessage message;
  pb::Loaded& loaded = *message.mutable_loaded();
  loaded.set_weight_bytes(report.weight_bytes);
  loaded.set_kv_bytes_per_block(report.kv_bytes_per_block);
  loaded.set_kv_bytes_budget(report.kv_bytes_budget);
  loaded.set_num_blocks_held(report.num_blocks_held);
  return impl_->Send(message);
}

absl::Status ClusterClient::SendReady(Epoch epoch, const MemoryReport& memory) {
  pb::WorkerMessage message;
  pb::Ready& ready = *message.mutable_ready();
  ready.set_epoch(epoch.value);
  ready.set_weight_bytes(memory.weight_bytes);
  ready.set_kv_bytes(memory.kv_bytes);
  ready.set_step_bytes(memory.step_bytes);
  ready.set_communicator_bytes(memory.communicator_bytes);
  ready.set_recording_bytes(memory.recording_bytes);
  ready.set_free_bytes(memory.free_bytes);
  ready.set_num_recorded(memory.num_recorded);
  ready.set_recording_seconds(absl::ToDoubleSeconds(memory.recording_time));
  ready.set_predicted_bytes(memory.predicted_bytes);
  ready.set_used_bytes(memory.used_bytes);
  ready.set_predicted_weight_bytes(memory.predicted_weight_bytes);
  return impl_->Send(message);
}

absl::Status ClusterClient::SendResult(const step::StepResult& result) {
  pb::WorkerMessage message;
  message.set_step_result(wire::EncodeResult(result));
  return impl_->Send(message);
}

absl::Status ClusterClient::SendFailed(Epoch epoch, const absl::Status& why) {
  pb::WorkerMessage message;
  message.mutable_failed()->set_code(static_cast<int32_t>(why.code()));
  message.mutable_failed()->set_message(Message(why));
  message.mutable_failed()->set_epoch(epoch.value);
  return impl_->Send(message);
}

absl::Status ClusterClient::SendEpochEnded(Epoch epoch) {
  pb::WorkerMessage message;
  message.mutable_epoch_ended()->set_epoch(epoch.value);
  return impl_->Send(message);
}

absl::Status ClusterClient::SendStanding(Epoch epoch, int32_t peer, absl::Duration waited) {
  pb::WorkerMessage message;
  message.mutable_standing()->set_epoch(epoch.value);
  message.mutable_standing()->set_peer(peer);
  message.mutable_standing()->set_waited_ms(absl::ToInt64Milliseconds(waited));
  return impl_->Send(message);
}

void ClusterClient::Close() {
  impl_->Close();
}
void ClusterClient::Finish() {
  impl_->Finish();
}

}  // namespace polyreme::run
