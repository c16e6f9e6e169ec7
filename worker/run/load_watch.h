// Whether the loading of a shard gets on. Tensors that are done are its progress; between two of
// them, so are pages that come from the disk and work that the process does, since a large tensor
// on a slow disk takes its time.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "absl/time/time.h"
#include "parallel/base/clock.h"

namespace polyreme::run {

class LoadWatch {
 public:
  // Of the whole process, so far.
  struct Effort {
    absl::Duration cpu;
    int64_t pages = 0;  // that a disk was asked for
  };
  static Effort OfThisProcess();

  // clock borrowed.
  explicit LoadWatch(const Clock& clock, std::function<Effort()> effort = OfThisProcess)
      : clock_(clock), effort_(std::move(effort)) {}

  // Loader: something was done; the next sign of it is due within `patience`.
  void Mark(int64_t bytes_done, int64_t bytes_total, absl::Duration patience);
  // Loader: it has ended, one way or the other.
  void End();
  // "" while it gets on, and when nothing is loading. Any thread.
  std::string Complaint();

 private:
  const Clock& clock_;
  const std::function<Effort()> effort_;
  std::mutex mutex_;
  bool is_loading_ = false;  // guarded by mutex_, and so on
  int64_t bytes_done_ = 0;
  int64_t bytes_total_ = 0;
  absl::Duration patience_;
  absl::Time last_sign_;
  Effort last_effort_;
};

}  // namespace polyreme::run
