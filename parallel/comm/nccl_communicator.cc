#include "parallel/comm/nccl_communicator.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "parallel/base/clock.h"
#include "parallel/base/limits.h"
#include "parallel/comm/group_errors.h"
#include "parallel/comm/nccl_group.h"
#include "parallel/comm/nccl_library.h"
#include "parallel/comm/nccl_windows.h"
#include "parallel/comm/stat_counters.h"

namespace polyreme::comm {
namespace {

// For the whole of UseArena; it takes well under a second.
constexpr absl::Duration kArenaPatience = absl::Seconds(30);

cudaStream_t StreamOf(const Lane& lane) {
  return static_cast<cudaStream_t>(lane.native_stream());
}

ncclDataType_t SumTypeOf(DType dtype) {
  CHECK(IsFloat(dtype), "sums are of floats, not {}", NameOf(dtype));
  return dtype == DType::kF32 ? ncclFloat32 : dtype == DType::kF16 ? ncclFloat16 : ncclBfloat16;
}

// A group of one GPU: a sum is the identity, a gather a copy. No NCCL.
class OneGpuCommunicator final : public Communicator {
 public:
  explicit OneGpuCommunicator(std::string name) : name_(std::move(name)) {}

  int rank() const override { return 0; }
  int size() const override { return 1; }

  void AllReduceSum(Lane& lane, TensorView) override { (void)Begin(lane); }
  void ReduceScatterSum(Lane& lane, ConstTensorView whole, TensorView part) override {
    if (Begin(lane)) Copy(lane, whole, part);
  }
  void AllGather(Lane& lane, ConstTensorView part, TensorView whole) override {
    if (Begin(lane)) Copy(lane, part, whole);
  }
  void Broadcast(Lane& lane, TensorView, int root) override {
    CHECK(root == 0);
    (void)Begin(lane);
  }
  void Exchange(Lane& lane, absl::Span<const Outgoing> sends,
                absl::Span<const Incoming> receives) override {
    CHECK(sends.size() == receives.size(), "a rank alone receives what it sends");
    if (!Begin(lane)) return;
    for (size_t i = 0; i < sends.size(); ++i) {
      CHECK(sends[i].peer == 0 && receives[i].peer == 0);
      Copy(lane, sends[i].from, receives[i].to);
    }
  }
  void Abort(absl::Status why) noexcept override {
    const std::lock_guard lock(mutex_);
    if (end_.ok()) end_ = std::move(why);
  }
  CommStats stats() const override { return counters_.Read(); }

 private:
  static void Copy(Lane& lane, const ConstTensorView& from, const TensorView& to) {
    CHECK(from.bytes() == to.bytes());
    if (from.data == to.data || from.bytes() == 0) return;
    const absl::Status status =
        CudaStatus(cudaMemcpyAsync(to.data, from.data, static_cast<size_t>(from.bytes()),
                                   cudaMemcpyDeviceToDevice, StreamOf(lane)),
                   "a copy to itself");
    if (!status.ok()) lane.Fail(status);
  }
  bool Begin(Lane& lane) {
    if (!lane.ok()) return false;
    const std::unique_lock lock(mutex_);
    if (end_.ok()) {
      counters_.CountOperation();
      return true;
    }
    const absl::Status end = Annotate(end_, name_);
    lane.Fail(end);
    return false;
  }

  const std::string name_;
  StatCounters counters_;
  std::mutex mutex_;
  absl::Status end_;  // guarded by mutex_
};

// The memory that AllocateArena gave out, and what is to be done before it goes.
class Arenas {
 public:
  void Add(void* data, int64_t bytes) {
    const std::lock_guard lock(mutex_);
    ranges_[data].bytes = bytes;
  }
  void Remove(void* data) {
    std::vector<std::function<void()>> before;
    {
      const std::lock_guard lock(mutex_);
      before = std::move(ranges_[data].before_removal);
      ranges_.erase(data);
    }
    for (const std::function<void()>& todo : before) todo();
  }
  // Whether all of the view lies in one of them.
  bool Hold(const TensorView& view) const {
    const std::lock_guard lock(mutex_);
    const auto after = ranges_.upper_bound(view.data);
    if (after == ranges_.begin()) return false;
    const auto& [data, range] = *std::prev(after);
    return static_cast<std::byte*>(view.data) + view.bytes() <=
           static_cast<std::byte*>(data) + range.bytes;
  }
  // view: of which Hold is true.
  void BeforeRemoval(const TensorView& view, std::function<void()> todo) {
    const std::lock_guard lock(mutex_);
    std::prev(ranges_.upper_bound(view.data))->second.before_removal.push_back(std::move(todo));
  }

 private:
  struct Range {
    int64_t bytes = 0;
    std::vector<std::function<void()>> before_removal;
  };
  mutable std::mutex mutex_;
  std::map<void*, Range> ranges_;  // guarded by mutex_
};

class NcclRanks final : public NcclCommunicator {
 public:
  NcclRanks(const NcclLibrary& nccl, int device, const GroupSpec& spec,
            std::shared_ptr<Arenas> arenas)
      : rank_(spec.rank),
        size_(spec.size()),
        device_(device),
        arenas_(std::move(arenas)),
        group_(nccl, device, spec.name) {}

  absl::Status Join(const GroupSpec& spec, const ncclUniqueId& id);

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void AllReduceSum(Lane& lane, TensorView inout) override {
    const ncclDataType_t type = SumTypeOf(inout.dtype);
    const int64_t moved = 2 * (size_ - 1) * inout.bytes() / size_;
    const ncclComm_t* const comm = ChooseSum(inout);
    Run(lane, "all-reduce", inout.bytes(), {moved, moved}, comm, [&] {
      return nccl().all_reduce(inout.data, inout.data, Count(inout), type, ncclSum, *comm,
                               StreamOf(lane));
    });
  }
  void ReduceScatterSum(Lane& lane, ConstTensorView whole, TensorView part) override {
    const ncclDataType_t type = SumTypeOf(whole.dtype);
    CHECK(whole.dtype == part.dtype && whole.num_elements() == part.num_elements() * size_);
    const int64_t moved = (size_ - 1) * part.bytes();
    Run(lane, "reduce-scatter", whole.bytes(), {moved, moved}, plain(), [&] {
      return nccl().reduce_scatter(whole.data, part.data, Count(part), type, ncclSum, *plain(),
                                   StreamOf(lane));
    });
  }
  void AllGather(Lane& lane, ConstTensorView part, TensorView whole) override {
    CHECK(whole.dtype == part.dtype && whole.num_elements() == part.num_elements() * size_);
    const int64_t moved = (size_ - 1) * part.bytes();
    Run(lane, "all-gather", whole.bytes(), {moved, moved}, plain(), [&] {
      return nccl().all_gather(part.data, whole.data, static_cast<size_t>(part.bytes()), ncclUint8,
                               *plain(), StreamOf(lane));
    });
  }
  void Broadcast(Lane& lane, TensorView inout, int root) override {
    CHECK(root >= 0 && root < size_);
    const Moved moved =
        rank_ == root ? Moved{(size_ - 1) * inout.bytes(), 0} : Moved{0, inout.bytes()};
    Run(lane, "broadcast", inout.bytes(), moved, plain(), [&] {
      return nccl().broadcast(inout.data, inout.data, static_cast<size_t>(inout.bytes()), ncclUint8,
                              root, *plain(), StreamOf(lane));
    });
  }
  void Exchange(Lane& lane, absl::Span<const Outgoing> sends,
                absl::Span<const Incoming> receives) override;

  absl::Status UseArena(TensorView arena) override;
  void FailWithGroup(Lane* lane) override { group_.FailWithGroup(lane); }
  void Abort(absl::Status why) noexcept override { group_.Abort(std::move(why)); }
  CommStats stats() const override { return counters_.Read(); }
  absl::Span<const AllReduceTiming> timings() const override { return timings_; }

 private:
  struct Moved {
    int64_t sent = 0;
    int64_t received = 0;
  };

  const NcclLibrary& nccl() const { return group_.nccl(); }
  const ncclComm_t* plain() { return &group_.communicators().plain; }
  template <class View>
  static size_t Count(const View& view) {
    return static_cast<size_t>(view.num_elements());
  }

  void Run(Lane& lane, std::string_view what, int64_t bytes, Moved moved, const ncclComm_t* comm,
           absl::FunctionRef<ncclResult_t()> body) {
    if (!lane.ok() || bytes == 0) return;
    const absl::Status status =
        group_.Call(what, comm, MonotonicNow() + limits::kCollectivePatience, body);
    if (!status.ok()) {
      lane.Fail(Annotate(status, fmt::format("{} of {} bytes", what, bytes)));
      return;
    }
    counters_.CountOperation();
    counters_.CountSent(static_cast<size_t>(moved.sent));
    counters_.CountReceived(static_cast<size_t>(moved.received));
  }
  const ncclComm_t* ChooseSum(const TensorView& x) {
    return InWindow(x) && WindowWins(timings_, x.bytes()) ? &group_.communicators().windows
                                                          : plain();
  }
  bool InWindow(const TensorView& x) const {
    const std::byte* const begin = static_cast<const std::byte*>(x.data);
    return window_begin_ != nullptr && begin >= window_begin_ && begin + x.bytes() <= window_end_;
  }

  absl::Status WarmUp(absl::Time deadline);
  absl::Status MakeWindow(const NcclStage& stage, TensorView arena, absl::Time deadline);
  // What goes to this rank itself, as copies, one after another.
  absl::Status CopyToSelf(Lane& lane, absl::Span<const Outgoing> sends,
                          absl::Span<const Incoming> receives);
  ncclResult_t PostAll(cudaStream_t stream, absl::Span<const Outgoing> sends,
                       absl::Span<const Incoming> receives);

  const int rank_;
  const int size_;
  const int device_;
  const std::shared_ptr<Arenas> arenas_;
  const std::byte* window_begin_ = nullptr;
  const std::byte* window_end_ = nullptr;
  std::vector<AllReduceTiming> timings_;
  StatCounters counters_;
  NcclGroup group_;
};

absl::Status NcclRanks::Join(const GroupSpec& spec, const ncclUniqueId& id) {
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(device_), "cudaSetDevice"));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const absl::Status joined = group_.Call("joining", plain(), spec.deadline, [&] {
    return nccl().comm_init_rank_config(&group_.communicators().plain, size_, id, rank_, &config);
  });
  // NCCL does not say who is missing.
  if (absl::IsDeadlineExceeded(joined)) {
    return DeadlineExceeded("{}: some of {} did not join through NCCL within {}", spec.name,
                            NamePeers(spec, [](int) { return true; }),
                            absl::FormatDuration(spec.patience));
  }
  RETURN_IF_ERROR(joined);
  return WarmUp(spec.deadline);
}

// NCCL connects on first use, which takes memory and time: here, and not in a step.
absl::Status NcclRanks::WarmUp(absl::Time deadline) {
  ASSIGN_OR_RETURN(const std::unique_ptr<NcclStage> stage, NcclStage::Make(group_));
  float one = 1;
  RETURN_IF_ERROR(Agree(group_, *stage, ncclSum, deadline, absl::MakeSpan(&one, 1)));
  if (one != static_cast<float>(size_)) {
    return Internal("{}: NCCL counts {} ranks of {}", group_.name(), one, size_);
  }
  constexpr DType kByte = DType::kU8;
  const int next = (rank_ + 1) % size_;
  const int previous = (rank_ + size_ - 1) % size_;
  float* const memory = stage->memory();
  const Outgoing sends[] = {{{memory, kByte, Shape{4}}, next},
                            {{memory, kByte, Shape{4}}, previous}};
  const Incoming receives[] = {{{memory + 8, kByte, Shape{4}}, previous},
                               {{memory + 16, kByte, Shape{4}}, next}};
  RETURN_IF_ERROR(group_.Call("connecting neighbours", plain(), deadline,
                              [&] { return PostAll(stage->stream(), sends, receives); }));
  return group_.WaitFor(stage->stream(), "connecting neighbours", deadline);
}

void NcclRanks::Exchange(Lane& lane, absl::Span<const Outgoing> sends,
                         absl::Span<const Incoming> receives) {
  int64_t bytes = 0;
  Moved moved;
  for (const Outgoing& send : sends) {
    CHECK(send.peer >= 0 && send.peer < size_);
    bytes += send.from.bytes();
    if (send.peer != rank_) moved.sent += send.from.bytes();
  }
  for (const Incoming& receive : receives) {
    CHECK(receive.peer >= 0 && receive.peer < size_);
    bytes += receive.to.bytes();
    if (receive.peer != rank_) moved.received += receive.to.bytes();
  }
  if (!lane.ok() || bytes == 0) return;
  absl::Status copied = group_.end();
  if (copied.ok()) copied = CopyToSelf(lane, sends, receives);
  if (!copied.ok()) return lane.Fail(copied);
  if (moved.sent + moved.received == 0) return counters_.CountOperation();
  Run(lane, "exchange", bytes, moved, plain(),
      [&] { return PostAll(StreamOf(lane), sends, receives); });
}

absl::Status NcclRanks::CopyToSelf(Lane& lane, absl::Span<const Outgoing> sends,
                                   absl::Span<const Incoming> receives) {
  const auto to_self = [this](const auto& message) { return message.peer == rank_; };
  auto receive = receives.begin();
  for (const Outgoing& send : sends) {
    if (!to_self(send)) continue;
    receive = std::find_if(receive, receives.end(), to_self);
    CHECK(receive != receives.end() && receive->to.bytes() == send.from.bytes(),
          "a rank receives what it sends itself");
    if (send.from.bytes() > 0) {
      RETURN_IF_ERROR(CudaStatus(
          cudaMemcpyAsync(receive->to.data, send.from.data, static_cast<size_t>(send.from.bytes()),
                          cudaMemcpyDeviceToDevice, StreamOf(lane)),
          "a copy to itself"));
    }
    ++receive;
  }
  return absl::OkStatus();
}

ncclResult_t NcclRanks::PostAll(cudaStream_t stream, absl::Span<const Outgoing> sends,
                                absl::Span<const Incoming> receives) {
  ncclResult_t result = nccl().group_start();
  if (result != ncclSuccess) return result;
  const auto post = [&](ncclResult_t posted) {
    if (result == ncclSuccess && posted != ncclInProgress) result = posted;
  };
  for (const Outgoing& send : sends) {
    if (send.peer == rank_ || send.from.bytes() == 0) continue;
    post(nccl().send(send.from.data, static_cast<size_t>(send.from.bytes()), ncclUint8, send.peer,
                     *plain(), stream));
  }
  for (const Incoming& receive : receives) {
    if (receive.peer == rank_ || receive.to.bytes() == 0) continue;
    post(nccl().recv(receive.to.data, static_cast<size_t>(receive.to.bytes()), ncclUint8,
                     receive.peer, *plain(), stream));
  }
  const ncclResult_t ended = nccl().group_end();
  return result == ncclSuccess ? ended : result;
}

absl::Status NcclRanks::UseArena(TensorView arena) {
  CHECK(timings_.empty() && window_begin_ == nullptr, "a group uses one arena");
  const absl::Time deadline = MonotonicNow() + kArenaPatience;
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(device_), "cudaSetDevice"));
  ASSIGN_OR_RETURN(const std::unique_ptr<NcclStage> stage, NcclStage::Make(group_));
  RETURN_IF_ERROR(MakeWindow(*stage, arena, deadline));
  absl::StatusOr<std::vector<AllReduceTiming>> timings =
      MeasureAllReduce(group_, *stage, arena, deadline);
  if (!timings.ok()) {
    group_.Abort(timings.status());
    return timings.status();
  }
  timings_ = *std::move(timings);
  if (group_.communicators().window != nullptr) {
    window_begin_ = static_cast<const std::byte*>(arena.data);
    window_end_ = window_begin_ + arena.bytes();
  }
  return absl::OkStatus();
}

// Leaves `window` null where one of the ranks can have none.
absl::Status NcclRanks::MakeWindow(const NcclStage& stage, TensorView arena, absl::Time deadline) {
  NcclGroup::Communicators& comms = group_.communicators();
  const bool possible = nccl().has_windows() && arena.bytes() > 0 && arenas_->Hold(arena);
  // Sizes in MiB and the rest, each exact as a float; negative too, for the largest.
  const float whole = static_cast<float>(arena.bytes() >> 20);
  const float rest = static_cast<float>(arena.bytes() & ((1 << 20) - 1));
  float all[] = {possible ? 1.0f : 0.0f, whole, rest, -whole, -rest};
  RETURN_IF_ERROR(Agree(group_, stage, ncclMin, deadline, absl::MakeSpan(all)));
  if (all[1] != -all[3] || all[2] != -all[4]) {
    return Internal("{}: arenas differ in size; this rank's has {} bytes", group_.name(),
                    arena.bytes());
  }
  if (all[0] == 0) return absl::OkStatus();
  // A communicator of its own, because NCCL takes the window's kernels wherever it finds one.
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  RETURN_IF_ERROR(group_.Call("splitting", &comms.plain, deadline, [&] {
    return nccl().comm_split(comms.plain, /*color=*/0, /*key=*/rank_, &comms.windows, &config);
  }));
  if (comms.windows == nullptr) {
    return Internal("{}: NCCL split the group and gave no communicator", group_.name());
  }
  RETURN_IF_ERROR(group_.Call("registering the arena", &comms.windows, deadline, [&] {
    return nccl().comm_window_register(comms.windows, arena.data,
                                       static_cast<size_t>(arena.bytes()), &comms.window,
                                       NCCL_WIN_COLL_SYMMETRIC);
  }));
  if (comms.window != nullptr) arenas_->BeforeRemoval(arena, group_.WindowDropper());
  float registered = comms.window != nullptr ? 1 : 0;
  RETURN_IF_ERROR(Agree(group_, stage, ncclMin, deadline, absl::MakeSpan(&registered, 1)));
  if (registered == 0 && comms.window != nullptr) {
    return Internal("{}: this rank's arena is a symmetric window, a peer's is not", group_.name());
  }
  return absl::OkStatus();
}

class Factory final : public NcclFactory {
 public:
  explicit Factory(int device) : device_(device), arenas_(std::make_shared<Arenas>()) {}

  absl::StatusOr<std::string> MakeId() override {
    ASSIGN_OR_RETURN(const NcclLibrary* const nccl, OpenNccl());
    ncclUniqueId id;
    const ncclResult_t result = nccl->get_unique_id(&id);
    if (result != ncclSuccess) {
      return Unavailable("ncclGetUniqueId: {}: {}", nccl->get_error_string(result),
                         nccl->get_last_error(nullptr));
    }
    return std::string(id.internal, sizeof(id.internal));
  }

  absl::StatusOr<std::unique_ptr<Communicator>> Make(const GroupSpec& group,
                                                     const std::string& id) override {
    if (group.size() == 1) return std::make_unique<OneGpuCommunicator>(group.name);
    ASSIGN_OR_RETURN(const NcclLibrary* const nccl, OpenNccl());
    ncclUniqueId unique;
    if (id.size() != sizeof(unique.internal)) {
      return InvalidArgument("{}: expected an NCCL id of {} bytes, got {}", group.name,
                             sizeof(unique.internal), id.size());
    }
    std::memcpy(unique.internal, id.data(), id.size());
    auto ranks = std::make_unique<NcclRanks>(*nccl, device_, group, arenas_);
    RETURN_IF_ERROR(ranks->Join(group, unique));
    nccl_ = nccl;
    return ranks;
  }

  absl::StatusOr<Buffer> AllocateArena(int64_t bytes) override {
    RETURN_IF_ERROR(CudaStatus(cudaSetDevice(device_), "cudaSetDevice"));
    const NcclLibrary* const nccl = nccl_;
    const bool windows = nccl != nullptr && nccl->has_windows();
    void* data = nullptr;
    const size_t size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
    const bool taken = windows ? nccl->mem_alloc(&data, size) == ncclSuccess
                               : cudaMalloc(&data, size) == cudaSuccess;
    if (!taken) {
      size_t free = 0, total = 0;
      (void)cudaGetLastError();
      (void)cudaMemGetInfo(&free, &total);
      return ResourceExhausted("an arena of {} bytes on GPU {}: {} of {} bytes are free", bytes,
                               device_, free, total);
    }
    if (windows) arenas_->Add(data, bytes);
    Buffer buffer(data, bytes, [windows, nccl, arenas = arenas_, device = device_](void* gone) {
      arenas->Remove(gone);
      (void)cudaSetDevice(device);
      if (windows) {
        (void)nccl->mem_free(gone);
      } else {
        (void)cudaFree(gone);
      }
    });
    RETURN_IF_ERROR(CudaStatus(cudaMemset(data, 0, size), "clearing the arena"));
    // Of device memory cudaMemset may return before it is done, and a lane's stream does not wait.
    RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(nullptr), "clearing the arena"));
    return buffer;
  }

 private:
  const int device_;
  const std::shared_ptr<Arenas> arenas_;
  std::atomic<const NcclLibrary*> nccl_ = nullptr;  // once there is a group of more than one
};

}  // namespace

absl::StatusOr<std::unique_ptr<NcclFactory>> MakeNcclFactory(int device_index) {
  int count = 0;
  RETURN_IF_ERROR(CudaStatus(cudaGetDeviceCount(&count), "counting GPUs"));
  if (device_index < 0 || device_index >= count) {
    return InvalidArgument("expected a GPU in [0, {}), got {}", count, device_index);
  }
  return std::make_unique<Factory>(device_index);
}

}  // namespace polyreme::comm
