// Where one rank meets the others: its tensor group, its pipeline column and the way back from last
// stage to first, for one epoch.
#pragma once

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/host_identity.h"
#include "parallel/comm/transport.h"
#include "parallel/launch/rendezvous.h"
#include "parallel/plan/topology.h"
#include "parallel/trace/flight_ring.h"

namespace polyreme::comm {

class ThreadHub;

class ProcessGroup {
 public:
  enum class Kind {
    kAuto,          // for each group: shared memory if all its ranks are on one host, TCP otherwise
    kThreads,       // ranks are threads of this process; needs Options::hub
    kSharedMemory,  // ranks are processes of one host
    kTcp,           // ranks are processes anywhere; needs a job token
    kNccl,          // communicators from Options::nccl; the way back as kAuto
  };
  struct Options {
    Kind kind = Kind::kAuto;
    Rank self;
    Epoch epoch;
    absl::Time deadline = absl::InfinitePast();  // of the whole meeting
    std::string job_token;                       // shared secret of the job; never sent in clear
    std::string host_identity;                   // empty: HostIdentity() of this machine
    std::string listen_address = "127.0.0.1";    // where TCP peers reach this rank
    ThreadHub* hub = nullptr;                    // kThreads; shared by the ranks, outlives them
    CommunicatorFactory* nccl = nullptr;         // kNccl; from the plugin
    trace::FlightRing* recorder = nullptr;       // of what the groups do; outlives them; null: none
    WaitBoard* board = nullptr;  // of the thread that uses tensor and pipeline group; the same
  };

  // Blocks until all ranks of this rank's groups have come. Each rank of the topology calls it once
  // per epoch; the keys of the meeting carry the epoch, so that an old rank never joins a new
  // group. Errors: DeadlineExceeded naming the rank that did not come; FailedPrecondition when
  // ranks of different hosts want shared memory (both hosts named), an old epoch, or a missing
  // option; Unauthenticated for another job token.
  static absl::StatusOr<std::unique_ptr<ProcessGroup>> Join(const plan::Topology& topology,
                                                            launch::Rendezvous& meet,
                                                            const Options& options);
  ~ProcessGroup();

  plan::Place place() const { return place_; }
  Communicator& tensor() { return *tensor_; }      // the shards of my stage; group rank = shard
  Communicator& pipeline() { return *pipeline_; }  // the stages of my shard; group rank = stage
  // Last stage (group rank 1) to first stage (group rank 0) of my shard, beside the lane. CHECKs
  // has_feedback().
  Transport& feedback();
  // True on the first and the last stage when there is more than one.
  bool has_feedback() const { return feedback_ != nullptr; }
  // Options::board, where it is written to: not by NCCL.
  WaitBoard* wait_board() const { return board_; }

  // Ends all groups of this rank; waits here and at the peers return soon. Any thread.
  void Abort(absl::Status why) noexcept;

 private:
  ProcessGroup() = default;

  plan::Place place_;
  WaitBoard* board_ = nullptr;
  std::unique_ptr<Communicator> tensor_;
  std::unique_ptr<Communicator> pipeline_;
  std::unique_ptr<Transport> feedback_;
};

}  // namespace polyreme::comm
