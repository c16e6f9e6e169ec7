#include "parallel/comm/cpu_communicator.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "parallel/base/clock.h"
#include "parallel/base/limits.h"
#include "parallel/comm/stat_counters.h"
#include "parallel/comm/tree_sum.h"

namespace polyreme::comm {
namespace {

// The size table: up to these many bytes everyone sends everything to everyone; beyond, slices go
// to their owners. Two ranks move the same bytes either way, in one exchange instead of two.
constexpr int64_t kSmallMessage = 16 << 10;
constexpr int64_t kSmallMessageOfTwo = 512 << 10;
constexpr int64_t kSmallOnStage = 16 << 10;
constexpr int64_t kSmallOnStageOfTwo = 64 << 10;
constexpr int64_t kSmallBroadcast = 64 << 10;
// What a reduction works on at a time when it goes by messages, over all ranks.
constexpr int64_t kChunkBytes = int64_t{1} << 20;
constexpr int64_t kFloatBytes = sizeof(float);

// Part `i` of `count` elements dealt to `parts`: neighbours, sizes differ by at most one.
Range SliceOf(int64_t count, int i, int parts) {
  return {count * i / parts, count * (i + 1) / parts};
}

class CpuCommunicator final : public Communicator {
 public:
  explicit CpuCommunicator(std::unique_ptr<Transport> transport)
      : transport_(std::move(transport)),
        stage_(transport_->shared_stage()),
        rank_(transport_->rank()),
        size_(transport_->size()) {
    const int64_t small = size_ == 2 ? kSmallMessageOfTwo : kSmallMessage * size_;
    scratch_.resize(static_cast<size_t>(std::max(kChunkBytes, small) / kFloatBytes + size_));
    parts_.resize(static_cast<size_t>(size_));
    sends_.reserve(static_cast<size_t>(2 * size_));
    receives_.reserve(static_cast<size_t>(2 * size_));
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void AllReduceSum(Lane& lane, TensorView inout) override {
    CHECK(inout.dtype == DType::kF32, "sums on the CPU are float32");
    Run(lane, "all-reduce", inout.bytes(), [&](absl::Time deadline) {
      return ReduceAll(inout.As<float>(), inout.num_elements(), deadline);
    });
  }
  void ReduceScatterSum(Lane& lane, ConstTensorView whole, TensorView part) override {
    CHECK(whole.dtype == DType::kF32 && part.dtype == DType::kF32, "sums on the CPU are float32");
    CHECK(whole.num_elements() == part.num_elements() * size_);
    Run(lane, "reduce-scatter", whole.bytes(), [&](absl::Time deadline) {
      return ReduceScatter(whole.As<float>(), part.num_elements(), part.As<float>(), deadline);
    });
  }
  void AllGather(Lane& lane, ConstTensorView part, TensorView whole) override {
    CHECK(whole.dtype == part.dtype && whole.num_elements() == part.num_elements() * size_);
    Run(lane, "all-gather", whole.bytes(), [&](absl::Time deadline) {
      return Gather(static_cast<const std::byte*>(part.data), part.bytes(),
                    static_cast<std::byte*>(whole.data), deadline);
    });
  }
  void Broadcast(Lane& lane, TensorView inout, int root) override {
    CHECK(root >= 0 && root < size_);
    Run(lane, "broadcast", inout.bytes(), [&](absl::Time deadline) {
      return SendFrom(root, static_cast<std::byte*>(inout.data), inout.bytes(), deadline);
    });
  }
  void Exchange(Lane& lane, absl::Span<const Outgoing> sends,
                absl::Span<const Incoming> receives) override;

  void Abort(absl::Status why) noexcept override { transport_->Abort(std::move(why)); }
  CommStats stats() const override {
    CommStats stats = counters_.Read();
    const CommStats moved = transport_->stats();
    stats.bytes_sent += moved.bytes_sent;
    stats.bytes_received += moved.bytes_received;
    stats.waiting += moved.waiting;
    return stats;
  }

 private:
  template <class Body>
  void Run(Lane& lane, std::string_view what, int64_t bytes, Body body) {
    if (!lane.ok() || bytes == 0) return;
    const absl::Status status = body(MonotonicNow() + limits::kCollectivePatience);
    if (status.ok()) {
      counters_.CountOperation();
    } else {
      lane.Fail(Annotate(status, fmt::format("{} of {} bytes", what, bytes)));
    }
  }

  absl::Status ReduceAll(float* x, int64_t count, absl::Time deadline);
  absl::Status ReduceOnStage(float* x, int64_t count, absl::Time deadline);
  absl::Status ReduceSlicesOnStage(float* x, int64_t count, absl::Time deadline);
  absl::Status ReduceByMessages(float* x, int64_t count, absl::Time deadline);
  absl::Status ReduceSlicesByMessages(float* x, int64_t count, absl::Time deadline);

  absl::Status ReduceScatter(const float* whole, int64_t count, float* part, absl::Time deadline);
  absl::Status ScatterOnStage(const float* whole, Range range, int64_t count, float* part,
                              absl::Time deadline);
  absl::Status Gather(const std::byte* part, int64_t bytes, std::byte* whole, absl::Time deadline);
  absl::Status GatherOnStage(const std::byte* part, Range range, int64_t bytes, std::byte* whole,
                             absl::Time deadline);
  absl::Status SendFrom(int root, std::byte* x, int64_t bytes, absl::Time deadline);
  absl::Status GatherSlices(std::byte* x, int64_t count, int64_t unit, absl::Time deadline);

  // One round on the stage with `bytes` of this rank copied to its slot.
  absl::Status ShowAll(const void* from, int64_t bytes, absl::Time deadline);
  absl::Status PublishAndWait(int64_t bytes, absl::Time deadline);
  void TakeParts(int64_t offset_floats);

  // Messages of the next exchange.
  void Send(const void* from, int64_t bytes, int peer) {
    sends_.push_back({{static_cast<const std::byte*>(from), static_cast<size_t>(bytes)}, peer});
  }
  void Receive(void* to, int64_t bytes, int peer) {
    receives_.push_back({{static_cast<std::byte*>(to), static_cast<size_t>(bytes)}, peer});
  }
  absl::Status ExchangeNow(absl::Time deadline) {
    const absl::Status status = transport_->Exchange(sends_, receives_, deadline);
    sends_.clear();
    receives_.clear();
    return status;
  }

  const std::unique_ptr<Transport> transport_;
  SharedStage* const stage_;
  const int rank_;
  const int size_;
  std::vector<float> scratch_;
  std::vector<const float*> parts_;
  std::vector<Transport::Outgoing> sends_;
  std::vector<Transport::Incoming> receives_;
  StatCounters counters_;
};

absl::Status CpuCommunicator::ReduceAll(float* x, int64_t count, absl::Time deadline) {
  const int64_t chunk =
      stage_ != nullptr ? stage_->slot_bytes() / kFloatBytes : kChunkBytes / kFloatBytes;
  const int64_t small = stage_ != nullptr
                            ? (size_ == 2 ? kSmallOnStageOfTwo : kSmallOnStage) / kFloatBytes
                            : (size_ == 2 ? kSmallMessageOfTwo : kSmallMessage) / kFloatBytes;
  for (int64_t at = 0; at < count; at += chunk) {
    const int64_t n = std::min(chunk, count - at);
    if (stage_ != nullptr) {
      RETURN_IF_ERROR(n <= small ? ReduceOnStage(x + at, n, deadline)
                                 : ReduceSlicesOnStage(x + at, n, deadline));
    } else {
      RETURN_IF_ERROR(n <= small ? ReduceByMessages(x + at, n, deadline)
                                 : ReduceSlicesByMessages(x + at, n, deadline));
    }
  }
  return absl::OkStatus();
}

absl::Status CpuCommunicator::PublishAndWait(int64_t bytes, absl::Time deadline) {
  stage_->Publish();
  RETURN_IF_ERROR(stage_->WaitForAll(deadline));
  counters_.CountSent(static_cast<size_t>(bytes));
  counters_.CountReceived(static_cast<size_t>(bytes * (size_ - 1)));
  return absl::OkStatus();
}

absl::Status CpuCommunicator::ShowAll(const void* from, int64_t bytes, absl::Time deadline) {
  RETURN_IF_ERROR(stage_->Begin(deadline));
  std::memcpy(stage_->slot(rank_), from, static_cast<size_t>(bytes));
  return PublishAndWait(bytes, deadline);
}

void CpuCommunicator::TakeParts(int64_t offset_floats) {
  for (int r = 0; r < size_; ++r) {
    parts_[static_cast<size_t>(r)] =
        reinterpret_cast<const float*>(stage_->slot(r)) + offset_floats;
  }
}

absl::Status CpuCommunicator::ReduceOnStage(float* x, int64_t count, absl::Time deadline) {
  RETURN_IF_ERROR(ShowAll(x, count * kFloatBytes, deadline));
  TakeParts(0);
  TreeSum(parts_, count, x);
  return absl::OkStatus();
}

absl::Status CpuCommunicator::ReduceSlicesOnStage(float* x, int64_t count, absl::Time deadline) {
  RETURN_IF_ERROR(ShowAll(x, count * kFloatBytes, deadline));
  const Range mine = SliceOf(count, rank_, size_);
  TakeParts(mine.begin);
  RETURN_IF_ERROR(stage_->Begin(deadline));
  TreeSum(parts_, mine.size(), reinterpret_cast<float*>(stage_->slot(rank_)));
  RETURN_IF_ERROR(PublishAndWait(mine.size() * kFloatBytes, deadline));
  for (int r = 0; r < size_; ++r) {
    const Range slice = SliceOf(count, r, size_);
    std::memcpy(x + slice.begin, stage_->slot(r), static_cast<size_t>(slice.size() * kFloatBytes));
  }
  return absl::OkStatus();
}

absl::Status CpuCommunicator::ReduceByMessages(float* x, int64_t count, absl::Time deadline) {
  for (int r = 0; r < size_; ++r) {
    float* const part = r == rank_ ? x : scratch_.data() + r * count;
    parts_[static_cast<size_t>(r)] = part;
    if (r == rank_) continue;
    Send(x, count * kFloatBytes, r);
    Receive(part, count * kFloatBytes, r);
  }
  RETURN_IF_ERROR(ExchangeNow(deadline));
  TreeSum(parts_, count, x);
  return absl::OkStatus();
}

absl::Status CpuCommunicator::ReduceSlicesByMessages(float* x, int64_t count, absl::Time deadline) {
  const Range mine = SliceOf(count, rank_, size_);
  for (int r = 0; r < size_; ++r) {
    float* const part = r == rank_ ? x + mine.begin : scratch_.data() + r * mine.size();
    parts_[static_cast<size_t>(r)] = part;
    if (r == rank_) continue;
    const Range theirs = SliceOf(count, r, size_);
    Send(x + theirs.begin, theirs.size() * kFloatBytes, r);
    Receive(part, mine.size() * kFloatBytes, r);
  }
  RETURN_IF_ERROR(ExchangeNow(deadline));
  TreeSum(parts_, mine.size(), x + mine.begin);
  return GatherSlices(reinterpret_cast<std::byte*>(x), count, kFloatBytes, deadline);
}

// Everyone's slice of `count` units goes to everyone.
absl::Status CpuCommunicator::GatherSlices(std::byte* x, int64_t count, int64_t unit,
                                           absl::Time deadline) {
  const Range mine = SliceOf(count, rank_, size_);
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    const Range theirs = SliceOf(count, r, size_);
    Send(x + mine.begin * unit, mine.size() * unit, r);
    Receive(x + theirs.begin * unit, theirs.size() * unit, r);
  }
  return ExchangeNow(deadline);
}

absl::Status CpuCommunicator::ReduceScatter(const float* whole, int64_t count, float* part,
                                            absl::Time deadline) {
  const int64_t room = stage_ != nullptr ? stage_->slot_bytes() : kChunkBytes;
  const int64_t chunk = room / kFloatBytes / size_;
  for (int64_t at = 0; at < count; at += chunk) {
    const Range range{at, std::min(at + chunk, count)};
    if (stage_ != nullptr) {
      RETURN_IF_ERROR(ScatterOnStage(whole, range, count, part, deadline));
      continue;
    }
    for (int r = 0; r < size_; ++r) {
      const float* const theirs = whole + r * count + range.begin;
      float* const received = scratch_.data() + r * range.size();
      parts_[static_cast<size_t>(r)] = r == rank_ ? theirs : received;
      if (r == rank_) continue;
      Send(theirs, range.size() * kFloatBytes, r);
      Receive(received, range.size() * kFloatBytes, r);
    }
    RETURN_IF_ERROR(ExchangeNow(deadline));
    TreeSum(parts_, range.size(), part + range.begin);
  }
  return absl::OkStatus();
}

absl::Status CpuCommunicator::ScatterOnStage(const float* whole, Range range, int64_t count,
                                             float* part, absl::Time deadline) {
  RETURN_IF_ERROR(stage_->Begin(deadline));
  float* const slot = reinterpret_cast<float*>(stage_->slot(rank_));
  for (int r = 0; r < size_; ++r) {
    std::memcpy(slot + r * range.size(), whole + r * count + range.begin,
                static_cast<size_t>(range.size() * kFloatBytes));
  }
  RETURN_IF_ERROR(PublishAndWait(size_ * range.size() * kFloatBytes, deadline));
  TakeParts(rank_ * range.size());
  TreeSum(parts_, range.size(), part + range.begin);
  return absl::OkStatus();
}

absl::Status CpuCommunicator::Gather(const std::byte* part, int64_t bytes, std::byte* whole,
                                     absl::Time deadline) {
  if (stage_ != nullptr) {
    for (int64_t at = 0; at < bytes; at += stage_->slot_bytes()) {
      const Range range{at, std::min(at + stage_->slot_bytes(), bytes)};
      RETURN_IF_ERROR(GatherOnStage(part, range, bytes, whole, deadline));
    }
    return absl::OkStatus();
  }
  std::memmove(whole + rank_ * bytes, part, static_cast<size_t>(bytes));
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    Send(whole + rank_ * bytes, bytes, r);
    Receive(whole + r * bytes, bytes, r);
  }
  return ExchangeNow(deadline);
}

absl::Status CpuCommunicator::GatherOnStage(const std::byte* part, Range range, int64_t bytes,
                                            std::byte* whole, absl::Time deadline) {
  RETURN_IF_ERROR(ShowAll(part + range.begin, range.size(), deadline));
  for (int r = 0; r < size_; ++r) {
    std::memcpy(whole + r * bytes + range.begin, stage_->slot(r),
                static_cast<size_t>(range.size()));
  }
  return absl::OkStatus();
}

absl::Status CpuCommunicator::SendFrom(int root, std::byte* x, int64_t bytes, absl::Time deadline) {
  const bool whole = bytes <= kSmallBroadcast || size_ == 2;
  for (int r = 0; r < size_; ++r) {
    const Range slice = whole ? Range{0, bytes} : SliceOf(bytes, r, size_);
    if (rank_ == root && r != root) Send(x + slice.begin, slice.size(), r);
    if (rank_ != root && r == rank_) Receive(x + slice.begin, slice.size(), root);
  }
  RETURN_IF_ERROR(ExchangeNow(deadline));
  return whole ? absl::OkStatus() : GatherSlices(x, bytes, 1, deadline);
}

void CpuCommunicator::Exchange(Lane& lane, absl::Span<const Outgoing> sends,
                               absl::Span<const Incoming> receives) {
  if (!lane.ok()) return;
  int64_t bytes = 0;
  size_t to_self = 0;
  for (const Outgoing& send : sends) {
    CHECK(send.peer >= 0 && send.peer < size_);
    bytes += send.from.bytes();
    if (send.peer != rank_) Send(send.from.data, send.from.bytes(), send.peer);
  }
  for (const Incoming& receive : receives) {
    CHECK(receive.peer >= 0 && receive.peer < size_);
    bytes += receive.to.bytes();
    if (receive.peer != rank_) {
      Receive(receive.to.data, receive.to.bytes(), receive.peer);
      continue;
    }
    while (to_self < sends.size() && sends[to_self].peer != rank_) ++to_self;
    CHECK(to_self < sends.size() && sends[to_self].from.bytes() == receive.to.bytes(),
          "a rank that receives from itself sends as much to itself");
    std::memmove(receive.to.data, sends[to_self++].from.data,
                 static_cast<size_t>(receive.to.bytes()));
  }
  Run(lane, "exchange", bytes, [&](absl::Time deadline) { return ExchangeNow(deadline); });
  sends_.clear();
  receives_.clear();
}

}  // namespace

std::unique_ptr<Communicator> MakeCpuCommunicator(std::unique_ptr<Transport> transport) {
  return std::make_unique<CpuCommunicator>(std::move(transport));
}

}  // namespace polyreme::comm
