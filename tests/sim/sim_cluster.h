// Worker processes, their agents and the network between them and the coordinator, in virtual time:
// the link of an engine under test. It keeps the contract of WorkerLink the way Cluster does, with
// the real Peers, ResultMerger and wire codec, and breaks everything that may break.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/engine/peers.h"
#include "coordinator/engine/result_merger.h"
#include "coordinator/engine/worker_link.h"
#include "parallel/step/slot_table.h"
#include "tests/sim/plants.h"
#include "tests/sim/sim_loop.h"
#include "tests/sim/sim_model.h"
#include "tests/sim/sim_shard.h"

namespace polyreme::sim {

enum class Fault : uint8_t {
  kDeath,     // of a process
  kHang,      // of a process; it may wake up again before its agent kills it
  kError,     // a worker's step fails
  kPlanLost,  // on the way to one rank
  kPlanTwice,
  kPlanGarbled,
  kResultLost,  // on the way from one rank
  kResultTwice,
  kResultGarbled,
  kOldResult,  // one of an epoch that is over comes when its step is in flight again
  kSlowStep,   // longer than anybody waits
  kClockJump,  // the coordinator stands still, and time goes on
  kDarkLink,   // between a rank and the coordinator: nothing comes through, and nobody is told
  kCoordinatorDeath,
};
inline constexpr Fault kFaults[] = {
    Fault::kDeath,           Fault::kDeath,       Fault::kDeath,         Fault::kHang,
    Fault::kError,           Fault::kPlanLost,    Fault::kPlanTwice,     Fault::kPlanGarbled,
    Fault::kResultLost,      Fault::kResultTwice, Fault::kResultGarbled, Fault::kOldResult,
    Fault::kOldResult,       Fault::kSlowStep,    Fault::kClockJump,     Fault::kDarkLink,
    Fault::kCoordinatorDeath};

struct ClusterSettings {
  Layout layout;
  step::StepLimits limits;
  int32_t max_restarts = 1000;  // more losses within restart_window are the end
  absl::Duration restart_window = absl::Minutes(10);
  int32_t faults_while_recovering = 0;
  absl::Duration step_time_most = absl::Milliseconds(10);
  absl::Duration network_most = absl::Milliseconds(3);
  absl::Time latest = absl::InfiniteFuture();  // a recovery that takes longer never ends
  Plant plant = Plant::kNone;
};

class SimCluster final : public engine::WorkerLink {
 public:
  // All borrowed and outliving the cluster. All ranks are ready for epoch 1.
  SimCluster(const ClusterSettings& settings, Loop& loop, Random& random, Report& report);
  ~SimCluster() override;

  void Inject(Fault fault);

  absl::Status Submit(const step::StepPlan& plan) override;
  absl::StatusOr<step::StepResult> Await(StepId step, absl::Time deadline) override;
  absl::Status failure() const override { return coordinator_lost_ ? Dead() : peers_->loss(); }
  absl::StatusOr<Epoch> Recover(const absl::Status& why) override;
  void Abort(Epoch epoch) noexcept override;

  // The coordinator is dead: every call fails, and what the ranks say is heard by nobody.
  bool coordinator_lost() const { return coordinator_lost_; }
  // Another takes its place: the ranks come to it with their weights, as Cluster has it. The epoch
  // that serves; an error with coordinator_lost() if this one has died too, or the end.
  absl::StatusOr<Epoch> TakeOver();

  // Sequences that had rows in steps without an answer when the last epoch was lost.
  const std::set<SequenceId>& lost_in_flight() const { return lost_in_flight_; }
  // Blocks that the plans so far have left in somebody's hands.
  int32_t NumBlocksHeld() const;
  int64_t num_losses() const { return num_losses_; }
  int64_t num_takeovers() const { return incarnation_ - 1; }
  int64_t num_steps() const { return num_steps_; }
  // Slots opened for a sequence that had one in this epoch, and behind cached blocks.
  int64_t num_preemptions() const { return num_preemptions_; }
  int64_t num_reused() const { return num_reused_; }
  // Of all that was planned.
  uint64_t digest() const { return digest_; }

 private:
  struct Process;
  struct Group;
  struct ToRank;
  struct FromRank;
  using ProcessPtr = std::shared_ptr<Process>;

  // Agents and processes.
  void Spawn(int32_t rank);
  void TryJoin(const ProcessPtr& process, int64_t looks_left);
  void Attach(const ProcessPtr& process, int64_t incarnation);
  void AttachAfterDeath(const ProcessPtr& process, int64_t incarnation);
  void Die(const ProcessPtr& process, const char* why);
  void Hang(const ProcessPtr& process);
  void WakeUp(const ProcessPtr& process);
  void OnStreamClosed(const ProcessPtr& process);
  void Darken(const ProcessPtr& process);
  void TellOfStreamEnd(const ProcessPtr& process, absl::Time time);
  void KillCoordinator();

  // Messages.
  absl::Duration Delay();
  void SendUp(const ProcessPtr& process, FromRank message);
  void SendFailed(const ProcessPtr& process, Epoch epoch, absl::Status why);
  void SendResult(const ProcessPtr& process, step::StepResult result);
  void OnMessage(const ProcessPtr& process, const FromRank& message);
  void OnResult(const ProcessPtr& process, const FromRank& message);
  void Broadcast(const ToRank& message);
  void SendOldResult(StepId step);
  void SendPlan(const ProcessPtr& process, const step::StepPlan& plan);
  void SendDown(const ProcessPtr& process, ToRank message);
  void Deliver(const ProcessPtr& process, const ToRank& message);
  void Handle(const ProcessPtr& process, const ToRank& message);
  void HandleStart(const ProcessPtr& process, Epoch epoch);
  void HandlePlan(const ProcessPtr& process, const ToRank& message);
  void HandleEndEpoch(const ProcessPtr& process, Epoch epoch);
  void HandleStreamEnded(const ProcessPtr& process);
  void LeaveEpoch(const ProcessPtr& process, std::function<void()> then);
  bool TakePending(Fault fault);

  // Steps.
  void JoinGroup(const ProcessPtr& process, Epoch epoch);
  void TryStep(const ProcessPtr& process);
  void TryCompute(Group& group, int32_t stage, int64_t step);
  bool HasInputs(const Group& group, int32_t stage, const step::StepPlan& plan) const;
  void Compute(Group& group, int32_t stage, int64_t step);
  std::vector<uint64_t> InputsOf(Group& group, int32_t rank, const step::StepPlan& plan);
  void FinishStage(Group& group, int32_t stage, const step::StepPlan& plan,
                   const std::vector<uint64_t>& outputs);
  void SampleAndFeedBack(Group& group, const step::StepPlan& plan,
                         const std::vector<uint64_t>& outputs);
  bool Takes(const Group& group, int32_t rank) const;
  void CheckResult(const step::StepResult& result);
  void Count(const step::StepPlan& plan);

  // Epochs, as Cluster keeps them.
  Epoch epoch() const { return epoch_; }
  void Lose(Epoch lost, const absl::Status& why);
  void Fail(const absl::Status& why);
  absl::Status CountRestart(const absl::Status& why);
  absl::Status BeginNextEpoch(const absl::Status& why);
  absl::Status Meet();
  absl::Status StartEpoch();
  void BeginAnew();
  static absl::Status Dead() { return Unavailable("the coordinator is dead"); }
  absl::Status WaitFor(engine::Peers::Phase phase, absl::Time deadline);

  // Planted mistakes.
  void SpoilPlan(step::StepPlan& plan);
  void SpoilResult(step::StepResult& result);

  const ClusterSettings settings_;
  Loop& loop_;
  Random& random_;
  Report& report_;
  // The coordinator's, and gone with it.
  std::optional<engine::Peers> peers_;
  std::optional<engine::ResultMerger> results_;
  Epoch epoch_{1};
  Epoch known_epoch_{0};  // by any worker that has joined
  // Its agent's: what the last coordinator left, and which one this is.
  bool coordinator_lost_ = false;
  Epoch noted_epoch_{0};
  int64_t incarnation_ = 1;
  std::deque<absl::Time> restarts_;
  std::vector<ProcessPtr> processes_;  // by rank, the latest
  // By rank: of a dead process, on the way to the coordinator.
  std::map<int32_t, std::function<void()>> late_streams_;
  std::map<int64_t, std::shared_ptr<Group>> groups_;  // by epoch
  std::vector<Fault> pending_;                        // that wait for a message to befall
  std::set<int64_t> excused_;  // epochs in which a plan was lost or doubled on the way
  std::deque<step::StepResult> past_results_;  // with samples
  int32_t faults_while_recovering_;
  int64_t next_life_ = 1;

  step::SlotTable mirror_;  // after the last plan submitted
  step::PlanValidator validator_;
  std::deque<std::pair<StepId, std::set<SequenceId>>> in_flight_;
  std::set<SequenceId> lost_in_flight_;
  int64_t num_losses_ = 0;
  int64_t num_steps_ = 0;
  std::set<SequenceId> opened_;  // in this epoch
  int64_t num_preemptions_ = 0;
  int64_t num_reused_ = 0;
  uint64_t digest_ = 0;
};

}  // namespace polyreme::sim
