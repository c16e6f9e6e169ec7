#include "parallel/comm/recorded_communicator.h"

#include <utility>

namespace polyreme::comm {
namespace {

using trace::FlightKind;
using trace::FlightState;

class RecordedCommunicator final : public Communicator {
 public:
  RecordedCommunicator(std::unique_ptr<Communicator> communicator, trace::FlightGroup group,
                       OperationEnd end, trace::FlightRing& ring)
      : communicator_(std::move(communicator)),
        group_(group),
        ended_(end == OperationEnd::kComputed ? FlightState::kFinished : FlightState::kEnqueued),
        ring_(ring),
        sent_(static_cast<size_t>(communicator_->size())),
        received_(static_cast<size_t>(communicator_->size())) {}

  int rank() const override { return communicator_->rank(); }
  int size() const override { return communicator_->size(); }

  void AllReduceSum(Lane& lane, TensorView inout) override {
    Record(lane, Collective(FlightKind::kAllReduce, inout.bytes()),
           [&] { communicator_->AllReduceSum(lane, inout); });
  }
  void ReduceScatterSum(Lane& lane, ConstTensorView whole, TensorView part) override {
    Record(lane, Collective(FlightKind::kReduceScatter, whole.bytes()),
           [&] { communicator_->ReduceScatterSum(lane, whole, part); });
  }
  void AllGather(Lane& lane, ConstTensorView part, TensorView whole) override {
    Record(lane, Collective(FlightKind::kAllGather, part.bytes()),
           [&] { communicator_->AllGather(lane, part, whole); });
  }
  void Broadcast(Lane& lane, TensorView inout, int root) override {
    Record(lane, Collective(FlightKind::kBroadcast, inout.bytes()),
           [&] { communicator_->Broadcast(lane, inout, root); });
  }
  void Exchange(Lane& lane, absl::Span<const Outgoing> sends,
                absl::Span<const Incoming> receives) override {
    Record(lane, Messages(sends, receives),
           [&] { communicator_->Exchange(lane, sends, receives); });
  }

  absl::Status UseArena(TensorView arena) override { return communicator_->UseArena(arena); }
  void FailWithGroup(Lane* lane) override { communicator_->FailWithGroup(lane); }
  void Abort(absl::Status why) noexcept override { communicator_->Abort(std::move(why)); }
  CommStats stats() const override { return communicator_->stats(); }

 private:
  trace::FlightRing::Operation Collective(FlightKind kind, int64_t bytes) {
    return {kind, group_, /*peer=*/-1, ++collectives_, bytes};
  }

  // One message is a send or a receive, numbered for its peer and direction; more of them are one
  // exchange of the whole group.
  trace::FlightRing::Operation Messages(absl::Span<const Outgoing> sends,
                                        absl::Span<const Incoming> receives) {
    if (sends.size() == 1 && receives.empty()) {
      const int peer = sends[0].peer;
      return {FlightKind::kSend, group_, peer, ++sent_[static_cast<size_t>(peer)],
              sends[0].from.bytes()};
    }
    if (sends.empty() && receives.size() == 1) {
      const int peer = receives[0].peer;
      return {FlightKind::kReceive, group_, peer, ++received_[static_cast<size_t>(peer)],
              receives[0].to.bytes()};
    }
    int64_t bytes = 0;
    for (const Outgoing& send : sends) bytes += send.from.bytes();
    for (const Incoming& receive : receives) bytes += receive.to.bytes();
    return Collective(FlightKind::kExchange, bytes);
  }

  template <class Body>
  void Record(Lane& lane, const trace::FlightRing::Operation& operation, Body body) {
    // On a lane that has failed nothing happens any more.
    if (!lane.ok()) return body();
    const uint64_t ticket = ring_.BeginOperation(operation);
    body();
    ring_.MarkOperation(ticket, lane.ok() ? ended_ : FlightState::kFailed);
  }

  const std::unique_ptr<Communicator> communicator_;
  const trace::FlightGroup group_;
  const FlightState ended_;
  trace::FlightRing& ring_;
  int64_t collectives_ = 0;
  std::vector<int64_t> sent_;  // by peer
  std::vector<int64_t> received_;
};

}  // namespace

std::unique_ptr<Communicator> MakeRecordedCommunicator(std::unique_ptr<Communicator> communicator,
                                                       trace::FlightGroup group, OperationEnd end,
                                                       trace::FlightRing& ring) {
  return std::make_unique<RecordedCommunicator>(std::move(communicator), group, end, ring);
}

}  // namespace polyreme::comm
