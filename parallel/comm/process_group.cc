#include "parallel/comm/process_group.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "parallel/base/clock.h"
#include "parallel/comm/cpu_communicator.h"
#include "parallel/comm/group_errors.h"
#include "parallel/comm/recorded_communicator.h"
#include "parallel/comm/shm_transport.h"
#include "parallel/comm/tcp_transport.h"
#include "parallel/comm/thread_transport.h"

namespace polyreme::comm {
namespace {

// One rank's way into its groups, one group after another in the same order on all ranks.
class Joiner {
 public:
  Joiner(launch::Rendezvous& meet, const ProcessGroup::Options& options)
      : meet_(meet),
        options_(options),
        host_(options.host_identity.empty() ? HostIdentity() : options.host_identity),
        patience_(options.deadline - MonotonicNow()) {}

  absl::Status Begin() {
    if (options_.kind == Kind::kThreads) return absl::OkStatus();
    return meet_.Put(HostKey(options_.self), host_);
  }

  absl::StatusOr<std::unique_ptr<Communicator>> JoinCommunicator(const std::string& what,
                                                                 std::vector<Rank> members,
                                                                 trace::FlightGroup kind) {
    GroupSpec group = SpecOf(what, std::move(members));
    group.board = options_.board;
    ASSIGN_OR_RETURN(std::unique_ptr<Communicator> joined, JoinPlain(what, group));
    // Alone nobody waits for anybody.
    if (options_.recorder == nullptr || group.size() == 1) return joined;
    const OperationEnd end =
        options_.kind == Kind::kNccl ? OperationEnd::kEnqueued : OperationEnd::kComputed;
    return MakeRecordedCommunicator(std::move(joined), kind, end, *options_.recorder);
  }

  absl::StatusOr<std::unique_ptr<Communicator>> JoinPlain(const std::string& what,
                                                          const GroupSpec& group) {
    if (options_.kind == Kind::kNccl) return JoinNccl(what, group);
    if (group.size() == 1) return MakeOneRankCommunicator(group.name);
    ASSIGN_OR_RETURN(std::unique_ptr<Transport> transport, Join(what, group));
    return MakeCpuCommunicator(std::move(transport));
  }

  absl::StatusOr<std::unique_ptr<Transport>> JoinTransport(const std::string& what,
                                                           std::vector<Rank> members) {
    return Join(what, SpecOf(what, std::move(members)));
  }

 private:
  using Kind = ProcessGroup::Kind;

  std::string HostKey(Rank rank) const {
    return fmt::format("epoch/{}/rank/{}/host", options_.epoch.value, rank.value);
  }
  std::string GroupKey(const std::string& what) const {
    return fmt::format("epoch/{}/{}", options_.epoch.value, what);
  }

  GroupSpec SpecOf(const std::string& what, std::vector<Rank> members) const {
    GroupSpec group;
    group.name = fmt::format("{} of epoch {}", what, options_.epoch.value);
    const auto self = std::find(members.begin(), members.end(), options_.self);
    group.rank = static_cast<int>(self - members.begin());
    group.members = std::move(members);
    group.deadline = options_.deadline;
    group.patience = patience_;
    return group;
  }

  // The first member that is on another host, with its host; or none.
  struct Foreigner {
    Rank rank;
    std::string host;
  };
  absl::StatusOr<std::optional<Foreigner>> FindForeigner(const GroupSpec& group) {
    for (int peer = 0; peer < group.size(); ++peer) {
      const Rank rank = group.members[static_cast<size_t>(peer)];
      if (peer == group.rank) continue;
      const absl::StatusOr<std::string> host = meet_.Wait(HostKey(rank), group.deadline);
      if (absl::IsDeadlineExceeded(host.status())) {
        return DidNotJoin(group, [&](int other) { return other == peer; });
      }
      RETURN_IF_ERROR(host.status());
      if (*host != host_) return Foreigner{rank, *host};
    }
    return std::nullopt;
  }

  absl::StatusOr<std::unique_ptr<Transport>> Join(const std::string& what, const GroupSpec& group) {
    const std::string key = GroupKey(what);
    if (options_.kind == Kind::kThreads) {
      return JoinThreads(*options_.hub, key, options_.epoch, group);
    }
    ASSIGN_OR_RETURN(const std::optional<Foreigner> foreigner, FindForeigner(group));
    const bool shares = options_.kind == Kind::kSharedMemory ||
                        (options_.kind != Kind::kTcp && !foreigner.has_value());
    if (shares && foreigner.has_value()) {
      return FailedPrecondition(
          "{}: ranks of different hosts cannot share memory: rank {} is on {}, rank {} on {}",
          group.name, options_.self.value, host_, foreigner->rank.value, foreigner->host);
    }
    if (shares) return JoinSharedMemory(meet_, key, options_.epoch, group, options_.job_token);
    const TcpOptions tcp{options_.epoch, options_.listen_address, options_.job_token};
    return JoinTcp(meet_, key, group, tcp);
  }

  absl::StatusOr<std::unique_ptr<Communicator>> JoinNccl(const std::string& what,
                                                         const GroupSpec& group) {
    if (group.size() == 1) return options_.nccl->Make(group, /*id=*/"");
    const std::string key = GroupKey(what) + "/nccl";
    if (group.rank == 0) {
      ASSIGN_OR_RETURN(std::string id, options_.nccl->MakeId());
      RETURN_IF_ERROR(meet_.Put(key, std::move(id)));
    }
    const absl::StatusOr<std::string> id = meet_.Wait(key, group.deadline);
    if (absl::IsDeadlineExceeded(id.status())) {
      return DidNotJoin(group, [](int peer) { return peer == 0; });
    }
    RETURN_IF_ERROR(id.status());
    return options_.nccl->Make(group, *id);
  }

  launch::Rendezvous& meet_;
  const ProcessGroup::Options& options_;
  const std::string host_;
  const absl::Duration patience_;
};

absl::Status Check(const plan::Topology& topology, const ProcessGroup::Options& options) {
  using Kind = ProcessGroup::Kind;
  if (options.self.value < 0 || options.self.value >= topology.world_size()) {
    return InvalidArgument("expected a rank in [0, {}), got {}", topology.world_size(),
                           options.self.value);
  }
  if (options.kind == Kind::kThreads && options.hub == nullptr) {
    return FailedPrecondition("ranks that are threads need a ThreadHub");
  }
  if (options.kind == Kind::kNccl && options.nccl == nullptr) {
    return FailedPrecondition("NCCL needs the CUDA plugin, which is not loaded");
  }
  if (options.kind != Kind::kThreads && topology.world_size() > 1 && options.job_token.empty()) {
    return FailedPrecondition("ranks that are processes need a job token");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ProcessGroup>> ProcessGroup::Join(const plan::Topology& topology,
                                                                 launch::Rendezvous& meet,
                                                                 const Options& options) {
  RETURN_IF_ERROR(Check(topology, options));
  std::unique_ptr<ProcessGroup> group(new ProcessGroup);
  const plan::Place place = topology.PlaceOf(options.self);
  group->place_ = place;
  if (options.kind != Kind::kNccl) group->board_ = options.board;
  Joiner joiner(meet, options);
  RETURN_IF_ERROR(joiner.Begin());
  ASSIGN_OR_RETURN(
      group->tensor_,
      joiner.JoinCommunicator(fmt::format("tensor group {}", place.stage),
                              topology.TensorGroup(place.stage), trace::FlightGroup::kTensor));
  ASSIGN_OR_RETURN(
      group->pipeline_,
      joiner.JoinCommunicator(fmt::format("pipeline column {}", place.shard),
                              topology.PipelineColumn(place.shard), trace::FlightGroup::kPipeline));
  const int32_t last = topology.stages() - 1;
  if (last > 0 && (place.stage == 0 || place.stage == last)) {
    ASSIGN_OR_RETURN(group->feedback_,
                     joiner.JoinTransport(fmt::format("feedback of shard {}", place.shard),
                                          {topology.RankAt({0, place.shard}),
                                           topology.RankAt({last, place.shard})}));
  }
  return group;
}

ProcessGroup::~ProcessGroup() = default;

Transport& ProcessGroup::feedback() {
  CHECK(feedback_ != nullptr, "stage {} of this pipeline has no feedback", place_.stage);
  return *feedback_;
}

void ProcessGroup::Abort(absl::Status why) noexcept {
  tensor_->Abort(why);
  pipeline_->Abort(why);
  if (feedback_ != nullptr) feedback_->Abort(std::move(why));
}

}  // namespace polyreme::comm
