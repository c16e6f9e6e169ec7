#include <cstring>
#include <mutex>
#include <utility>

#include "parallel/comm/communicator.h"
#include "parallel/comm/stat_counters.h"

namespace polyreme::comm {
namespace {

class OneRankCommunicator final : public Communicator {
 public:
  explicit OneRankCommunicator(std::string name) : name_(std::move(name)) {}

  int rank() const override { return 0; }
  int size() const override { return 1; }

  void AllReduceSum(Lane& lane, TensorView) override { Begin(lane); }
  void ReduceScatterSum(Lane& lane, ConstTensorView whole, TensorView part) override {
    if (Begin(lane)) Copy(whole, part);
  }
  void AllGather(Lane& lane, ConstTensorView part, TensorView whole) override {
    if (Begin(lane)) Copy(part, whole);
  }
  void Broadcast(Lane& lane, TensorView, int root) override {
    CHECK(root == 0);
    Begin(lane);
  }
  void Exchange(Lane& lane, absl::Span<const Outgoing> sends,
                absl::Span<const Incoming> receives) override {
    CHECK(sends.size() == receives.size(), "a rank alone receives what it sends");
    if (!Begin(lane)) return;
    for (size_t i = 0; i < sends.size(); ++i) {
      CHECK(sends[i].peer == 0 && receives[i].peer == 0);
      Copy(sends[i].from, receives[i].to);
    }
  }

  void Abort(absl::Status why) noexcept override {
    const std::lock_guard lock(mutex_);
    if (end_.ok()) end_ = std::move(why);
  }
  CommStats stats() const override { return counters_.Read(); }

 private:
  static void Copy(const ConstTensorView& from, const TensorView& to) {
    CHECK(from.bytes() == to.bytes());
    if (from.data != to.data) std::memmove(to.data, from.data, static_cast<size_t>(from.bytes()));
  }
  // False on a lane that has failed or a group that has ended.
  bool Begin(Lane& lane) {
    if (!lane.ok()) return false;
    absl::Status end;
    {
      const std::lock_guard lock(mutex_);
      end = end_;
    }
    if (!end.ok()) {
      lane.Fail(Annotate(end, name_));
      return false;
    }
    counters_.CountOperation();
    return true;
  }

  const std::string name_;
  StatCounters counters_;
  std::mutex mutex_;
  absl::Status end_;  // guarded by mutex_
};

}  // namespace

std::unique_ptr<Communicator> MakeOneRankCommunicator(std::string name) {
  return std::make_unique<OneRankCommunicator>(std::move(name));
}

}  // namespace polyreme::comm
