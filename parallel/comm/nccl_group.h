// The NCCL communicators of one group, and the thread that watches them and ends them.
//
// The rules of NCCL that this class keeps: communicators are non-blocking, so that each call is
// followed by polling under a deadline; ncclCommAbort is called while no other thread is inside;
// everything that may wait for the device at the end happens on the watcher, never on a caller.
//
// Two limits of NCCL itself (2.28). Kernels of symmetric windows wait for their peers without
// looking at the abort flag: if a peer dies in the middle of one, this GPU is busy until the
// process ends, and so are calls that wait for it. And a communicator ends only when the CUDA
// graphs that hold its operations are gone. So the destructor waits kReleasePatience and then
// leaves the watcher to itself: a worker whose group was aborted ends by _exit.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "parallel/base/status.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/nccl_library.h"

namespace polyreme::comm {

// "what: cudaErrorName: words", Unavailable; ok for cudaSuccess.
absl::Status CudaStatus(cudaError_t error, std::string_view what);

// One thread calls (the lane's); Abort, FailWithGroup and ended from any.
class NcclGroup {
 public:
  // plain serves everything; windows, split from it, only sums in the registered arena.
  struct Communicators {
    ncclComm_t plain = nullptr;
    ncclComm_t windows = nullptr;
    ncclWindow_t window = nullptr;  // of `windows`
  };

  // Starts the watcher. device: CUDA ordinal.
  NcclGroup(const NcclLibrary& nccl, int device, std::string name);
  ~NcclGroup();

  const NcclLibrary& nccl() const { return state_->nccl; }
  const std::string& name() const { return state_->name; }
  // Where Call's bodies find and leave the communicators.
  Communicators& communicators() { return state_->communicators; }

  // Runs body(), which calls NCCL once, and polls `*polled` until it is done. Errors:
  // DeadlineExceeded; Unavailable with NCCL's words; the group's end. Any error ends the group.
  absl::Status Call(std::string_view what, const ncclComm_t* polled, absl::Time deadline,
                    absl::FunctionRef<ncclResult_t()> body);
  // Waits until all work on the stream is done: DeadlineExceeded, CUDA's error or the group's end.
  // Any error ends the group.
  absl::Status WaitFor(cudaStream_t stream, std::string_view what, absl::Time deadline);

  // The first reason stays. Returns at once; the watcher does the work.
  void Abort(absl::Status why) noexcept;
  absl::Status end() const;
  // The lane that fails when the group ends; null: none any more. Blocks while it is being failed.
  void FailWithGroup(Lane* lane);
  // Takes the window back, if there still is one and the group has not ended, which leaves it to
  // the process's end; to be called before its memory goes. May outlive the group. Any thread.
  std::function<void()> WindowDropper() const;

 private:
  // What the watcher and the group share; the last one frees it.
  struct State {
    State(const NcclLibrary& library, int ordinal, std::string group_name)
        : nccl(library), device(ordinal), name(std::move(group_name)) {}

    void Watch();
    absl::Status Poll();
    void DropWindow();
    void Release(bool healthy);
    bool Settle(ncclResult_t result, ncclComm_t comm);
    void Finish(ncclComm_t comm, bool healthy);
    void End(absl::Status why);
    void TellLane(const absl::Status& why);
    absl::Status Why() const;
    // True when calls_mutex is held, false when the group has ended.
    bool Enter();
    // Until `pause` is over or the group has ended.
    void Pause(absl::Duration pause);

    const NcclLibrary& nccl;
    const int device;
    const std::string name;

    std::timed_mutex calls_mutex;  // held by whoever is inside NCCL
    Communicators communicators;   // guarded by calls_mutex

    std::atomic<bool> ended = false;
    mutable std::mutex mutex;
    std::condition_variable changed;
    absl::Status reason;    // guarded by mutex; of the end
    bool stopping = false;  // guarded by mutex
    bool released = false;  // guarded by mutex

    std::mutex lane_mutex;
    Lane* lane = nullptr;  // guarded by lane_mutex
  };

  const std::shared_ptr<State> state_;
  std::thread watcher_;
};

}  // namespace polyreme::comm
