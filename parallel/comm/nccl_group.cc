#include "parallel/comm/nccl_group.h"

#include <algorithm>
#include <utility>

#include "parallel/base/clock.h"

namespace polyreme::comm {
namespace {

constexpr absl::Duration kWatchInterval = absl::Milliseconds(50);
// How long an abort waits for a call in progress: one that hangs on a full queue behind a dead
// collective returns only because of the abort.
constexpr std::chrono::milliseconds kCallPatience{500};
constexpr absl::Duration kFinalizePatience = absl::Seconds(1);
constexpr absl::Duration kReleasePatience = absl::Seconds(2);
// Polls that only yield (a group's launch takes tens of microseconds), then pauses.
constexpr int kEagerPolls = 200;
constexpr absl::Duration kPollPause = absl::Microseconds(200);

absl::Status NcclStatus(const NcclLibrary& nccl, ncclResult_t result, ncclComm_t comm,
                        std::string_view what) {
  if (result == ncclSuccess) return absl::OkStatus();
  const char* const last = comm == nullptr ? nullptr : nccl.get_last_error(comm);
  const std::string words =
      fmt::format("{}: NCCL: {}{}{}", what, nccl.get_error_string(result),
                  last == nullptr || *last == 0 ? "" : ": ", last == nullptr ? "" : last);
  const bool ours = result == ncclInvalidArgument || result == ncclInvalidUsage;
  return MakeStatus(ours ? absl::StatusCode::kInternal : absl::StatusCode::kUnavailable, words);
}

}  // namespace

absl::Status CudaStatus(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  return Unavailable("{}: {}: {}", what, cudaGetErrorName(error), cudaGetErrorString(error));
}

NcclGroup::NcclGroup(const NcclLibrary& nccl, int device, std::string name)
    : state_(std::make_shared<State>(nccl, device, std::move(name))),
      watcher_([state = state_] { state->Watch(); }) {}

NcclGroup::~NcclGroup() {
  FailWithGroup(nullptr);
  bool released = false;
  {
    std::unique_lock lock(state_->mutex);
    state_->stopping = true;
    state_->changed.notify_all();
    released = state_->changed.wait_until(lock, ToSteady(MonotonicNow() + kReleasePatience),
                                          [&] { return state_->released; });
  }
  if (released) {
    watcher_.join();
  } else {
    watcher_.detach();
  }
}

absl::Status NcclGroup::Call(std::string_view what, const ncclComm_t* polled, absl::Time deadline,
                             absl::FunctionRef<ncclResult_t()> body) {
  State& state = *state_;
  if (!state.Enter()) return state.Why();
  ncclResult_t result = body();
  // ncclCommSplit of 2.28 says success of work that has only begun: the communicator knows better.
  if (result == ncclSuccess && *polled != nullptr) {
    const ncclResult_t asked = state.nccl.comm_get_async_error(*polled, &result);
    if (asked != ncclSuccess) result = asked;
  }
  for (int polls = 0; result == ncclInProgress; ++polls) {
    state.calls_mutex.unlock();
    if (MonotonicNow() >= deadline) {
      absl::Status late = DeadlineExceeded("{}: NCCL is still not done", what);
      Abort(late);
      return late;
    }
    if (polls < kEagerPolls) {
      std::this_thread::yield();
    } else {
      state.Pause(kPollPause);
    }
    if (!state.Enter()) return state.Why();
    const ncclResult_t asked = state.nccl.comm_get_async_error(*polled, &result);
    if (asked != ncclSuccess) result = asked;
  }
  absl::Status status = NcclStatus(state.nccl, result, *polled, what);
  state.calls_mutex.unlock();
  if (!status.ok()) Abort(status);
  return status;
}

absl::Status NcclGroup::WaitFor(cudaStream_t stream, std::string_view what, absl::Time deadline) {
  State& state = *state_;
  for (int polls = 0;; ++polls) {
    if (state.ended) return state.Why();
    const cudaError_t error = cudaStreamQuery(stream);
    if (error == cudaSuccess) return absl::OkStatus();
    absl::Status status = error != cudaErrorNotReady ? CudaStatus(error, what)
                          : MonotonicNow() >= deadline
                              ? DeadlineExceeded("{}: the GPU is still not done", what)
                              : absl::OkStatus();
    if (!status.ok()) {
      Abort(status);
      return status;
    }
    if (polls < kEagerPolls) {
      std::this_thread::yield();
    } else {
      state.Pause(kPollPause);
    }
  }
}

void NcclGroup::Abort(absl::Status why) noexcept {
  state_->End(std::move(why));
}

absl::Status NcclGroup::end() const {
  return state_->ended ? state_->Why() : absl::OkStatus();
}

void NcclGroup::FailWithGroup(Lane* lane) {
  {
    const std::lock_guard lock(state_->lane_mutex);
    state_->lane = lane;
  }
  if (lane != nullptr && state_->ended) state_->TellLane(state_->Why());
}

std::function<void()> NcclGroup::WindowDropper() const {
  return [weak = std::weak_ptr<State>(state_)] {
    if (const std::shared_ptr<State> state = weak.lock()) state->DropWindow();
  };
}

void NcclGroup::State::DropWindow() {
  if (!Enter()) return;
  (void)cudaSetDevice(device);
  const ncclWindow_t mine = std::exchange(communicators.window, nullptr);
  if (mine != nullptr && communicators.windows != nullptr) {
    (void)Settle(nccl.comm_window_deregister(communicators.windows, mine), communicators.windows);
  }
  calls_mutex.unlock();
}

bool NcclGroup::State::Enter() {
  while (!ended) {
    if (!calls_mutex.try_lock_for(std::chrono::milliseconds(10))) continue;
    if (!ended) return true;
    calls_mutex.unlock();
  }
  return false;
}

void NcclGroup::State::Pause(absl::Duration pause) {
  std::unique_lock lock(mutex);
  changed.wait_until(lock, ToSteady(MonotonicNow() + pause), [&] { return !reason.ok(); });
}

absl::Status NcclGroup::State::Why() const {
  const std::lock_guard lock(mutex);
  return Annotate(reason, name);
}

void NcclGroup::State::End(absl::Status why) {
  CHECK(!why.ok());
  const std::lock_guard lock(mutex);
  if (!reason.ok()) return;
  reason = std::move(why);
  ended = true;
  changed.notify_all();
}

void NcclGroup::State::TellLane(const absl::Status& why) {
  const std::lock_guard lock(lane_mutex);
  if (lane != nullptr) lane->Fail(why);
}

void NcclGroup::State::Watch() {
  (void)cudaSetDevice(device);
  std::unique_lock lock(mutex);
  const auto over = [&] { return stopping || !reason.ok(); };
  while (!changed.wait_until(lock, ToSteady(MonotonicNow() + kWatchInterval), over)) {
    lock.unlock();
    absl::Status seen = Poll();
    if (!seen.ok()) End(std::move(seen));
    lock.lock();
  }
  const bool healthy = reason.ok();
  lock.unlock();
  if (!healthy) TellLane(Why());
  Release(healthy);
  lock.lock();
  released = true;
  changed.notify_all();
}

// A caller that is inside looks for itself.
absl::Status NcclGroup::State::Poll() {
  const std::unique_lock lock(calls_mutex, std::try_to_lock);
  if (!lock.owns_lock()) return absl::OkStatus();
  for (const ncclComm_t comm : {communicators.plain, communicators.windows}) {
    if (comm == nullptr) continue;
    ncclResult_t result = ncclSuccess;
    const ncclResult_t asked = nccl.comm_get_async_error(comm, &result);
    if (asked != ncclSuccess) result = asked;
    if (result == ncclInProgress) continue;
    RETURN_IF_ERROR(NcclStatus(nccl, result, comm, "a peer or the way to it is lost"));
  }
  return absl::OkStatus();
}

void NcclGroup::State::Release(bool healthy) {
  // Calls that come later see `ended`, or there are none: the group's owner is in its destructor.
  const std::unique_lock lock(calls_mutex, kCallPatience);
  healthy = healthy && lock.owns_lock();
  const Communicators mine = communicators;
  if (lock.owns_lock()) communicators = {};
  if (healthy && mine.window != nullptr) {
    healthy = Settle(nccl.comm_window_deregister(mine.windows, mine.window), mine.windows);
  }
  // At once: each may free memory, which waits for kernels that only the other's abort ends.
  std::thread other;
  if (mine.windows != nullptr) {
    other = std::thread([this, comm = mine.windows, healthy] {
      (void)cudaSetDevice(device);
      Finish(comm, healthy);
    });
  }
  if (mine.plain != nullptr) Finish(mine.plain, healthy);
  if (other.joinable()) other.join();
}

void NcclGroup::State::Finish(ncclComm_t comm, bool healthy) {
  if (healthy && Settle(nccl.comm_finalize(comm), comm)) {
    (void)nccl.comm_destroy(comm);
  } else {
    (void)nccl.comm_abort(comm);
  }
}

// True when what `result` began has ended well.
bool NcclGroup::State::Settle(ncclResult_t result, ncclComm_t comm) {
  const absl::Time deadline = MonotonicNow() + kFinalizePatience;
  while (result == ncclInProgress) {
    if (ended || MonotonicNow() >= deadline) return false;
    Pause(kPollPause);
    const ncclResult_t asked = nccl.comm_get_async_error(comm, &result);
    if (asked != ncclSuccess) result = asked;
  }
  return result == ncclSuccess;
}

}  // namespace polyreme::comm
