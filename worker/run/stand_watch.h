// Tells the coordinator that this rank waits for another and nothing comes: the coordinator, who
// hears it of all ranks, knows when nobody is left that anything could come from
// (coordinator/engine/standstill.h).
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/time/time.h"
#include "parallel/comm/wait_board.h"

namespace polyreme::run {

class StandWatch {
 public:
  using Look = std::function<comm::WaitBoard::View()>;
  // The rank waits for `peer`, and nothing has moved for `waited`.
  using Tell = std::function<void(int32_t peer, absl::Duration waited)>;

  // Starts a thread that looks, and tells once each second while the same wait has lasted for
  // kStandPatience.
  StandWatch(Look look, Tell tell);
  ~StandWatch();

 private:
  void Run();

  const Look look_;
  const Tell tell_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ending_ = false;  // guarded by mutex_
  std::thread thread_;
};

inline constexpr absl::Duration kStandPatience = absl::Seconds(5);

}  // namespace polyreme::run
