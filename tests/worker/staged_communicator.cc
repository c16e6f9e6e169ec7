#include "tests/worker/staged_communicator.h"

#include <fmt/format.h>

#include <atomic>
#include <deque>
#include <utility>
#include <vector>

#include "parallel/base/clock.h"
#include "parallel/comm/cpu_communicator.h"
#include "worker/backend/backend.h"

namespace polyreme {
namespace {

using comm::Communicator;

constexpr absl::Duration kPatience = absl::Seconds(60);

class StagedCommunicator final : public Communicator {
 public:
  StagedCommunicator(std::unique_ptr<Communicator> host, Device& device,
                     std::unique_ptr<backend::Backend> cpu, std::unique_ptr<Lane> host_lane)
      : host_(std::move(host)),
        device_(device),
        cpu_(std::move(cpu)),
        host_lane_(std::move(host_lane)) {}

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  void AllReduceSum(Lane& lane, TensorView inout) override {
    Run(lane, [&] {
      const TensorView copy = Down(inout);
      host_->AllReduceSum(*host_lane_, copy);
      Up(copy, inout);
    });
  }
  void ReduceScatterSum(Lane& lane, ConstTensorView whole, TensorView part) override {
    Run(lane, [&] {
      const TensorView to = Room(part);
      host_->ReduceScatterSum(*host_lane_, Down(whole), to);
      Up(to, part);
    });
  }
  void AllGather(Lane& lane, ConstTensorView part, TensorView whole) override {
    Run(lane, [&] {
      const TensorView to = Room(whole);
      host_->AllGather(*host_lane_, Down(part), to);
      Up(to, whole);
    });
  }
  void Broadcast(Lane& lane, TensorView inout, int root) override {
    Run(lane, [&] {
      const TensorView copy = Down(inout);
      host_->Broadcast(*host_lane_, copy, root);
      Up(copy, inout);
    });
  }
  void Exchange(Lane& lane, absl::Span<const Outgoing> sends,
                absl::Span<const Incoming> receives) override {
    Run(lane, [&] {
      std::vector<Outgoing> out;
      std::vector<Incoming> in;
      for (const Outgoing& send : sends) out.push_back({Down(send.from), send.peer});
      for (const Incoming& receive : receives) in.push_back({Room(receive.to), receive.peer});
      host_->Exchange(*host_lane_, out, in);
      for (size_t i = 0; i < in.size(); ++i) Up(in[i].to, receives[i].to);
    });
  }
  void Abort(absl::Status why) noexcept override { host_->Abort(std::move(why)); }
  comm::CommStats stats() const override { return host_->stats(); }

 private:
  template <class Body>
  void Run(Lane& lane, const Body& body) {
    if (!lane.ok()) return;
    status_ = lane.Wait(lane.Mark(), MonotonicNow() + kPatience);
    if (status_.ok()) body();
    if (status_.ok()) status_ = host_lane_->status();
    if (!status_.ok()) lane.Fail(status_);
    rooms_.clear();
  }
  TensorView Room(const ConstTensorView& like) {
    std::vector<std::byte>& room = rooms_.emplace_back(static_cast<size_t>(like.bytes()));
    return {room.data(), like.dtype, like.shape};
  }
  TensorView Down(const ConstTensorView& from) {
    const TensorView to = Room(from);
    if (status_.ok()) status_ = device_.CopyToHost(from.data, from.bytes(), to.data);
    return to;
  }
  void Up(const ConstTensorView& from, const TensorView& to) {
    if (status_.ok()) status_ = device_.CopyFromHost(from.data, to.bytes(), to.data);
  }

  const std::unique_ptr<Communicator> host_;
  Device& device_;
  const std::unique_ptr<backend::Backend> cpu_;
  const std::unique_ptr<Lane> host_lane_;
  absl::Status status_;                       // of the operation under way
  std::deque<std::vector<std::byte>> rooms_;  // its host memory
};

}  // namespace

absl::StatusOr<std::string> StagedFactory::MakeId() {
  static std::atomic<int> groups{0};
  return fmt::format("staged group {}", ++groups);
}

absl::StatusOr<std::unique_ptr<Communicator>> StagedFactory::Make(const comm::GroupSpec& group,
                                                                  const std::string& id) {
  std::unique_ptr<Communicator> host = comm::MakeOneRankCommunicator(group.name);
  if (group.size() > 1) {
    ASSIGN_OR_RETURN(std::unique_ptr<comm::Transport> transport,
                     comm::JoinThreads(hub_, id, Epoch{1}, group));
    host = comm::MakeCpuCommunicator(std::move(transport));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<backend::Backend> cpu, backend::MakeBackend("cpu", {}));
  ASSIGN_OR_RETURN(std::unique_ptr<Lane> lane, cpu->device().MakeLane(0));
  return std::make_unique<StagedCommunicator>(std::move(host), device_, std::move(cpu),
                                              std::move(lane));
}

}  // namespace polyreme
