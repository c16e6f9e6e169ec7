#include "worker/run/load_watch.h"

#include <fmt/format.h>
#include <sys/resource.h>

namespace polyreme::run {
namespace {

// What a heart and gRPC do beside a loader that hangs stays well below these.
constexpr absl::Duration kLeastCpu = absl::Seconds(1);
constexpr int64_t kLeastPages = 16;

}  // namespace

LoadWatch::Effort LoadWatch::OfThisProcess() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return {
      .cpu = absl::DurationFromTimeval(usage.ru_utime) + absl::DurationFromTimeval(usage.ru_stime),
      .pages = usage.ru_majflt + usage.ru_inblock};
}

void LoadWatch::Mark(int64_t bytes_done, int64_t bytes_total, absl::Duration patience) {
  const absl::Time now = clock_.Now();
  const std::lock_guard lock(mutex_);
  is_loading_ = true;
  bytes_done_ = bytes_done;
  bytes_total_ = bytes_total;
  patience_ = patience;
  last_sign_ = now;
}

void LoadWatch::End() {
  const std::lock_guard lock(mutex_);
  is_loading_ = false;
}

std::string LoadWatch::Complaint() {
  const std::lock_guard lock(mutex_);
  if (!is_loading_) return "";
  const Effort effort = effort_();
  const absl::Time now = clock_.Now();
  if (effort.cpu - last_effort_.cpu >= kLeastCpu ||
      effort.pages - last_effort_.pages >= kLeastPages) {
    last_effort_ = effort;
    last_sign_ = now;
  }
  if (now - last_sign_ <= patience_) return "";
  return fmt::format(
      "loading stands still: nothing was read or done for {}, at {:.2f} of {:.2f} GiB",
      absl::FormatDuration(now - last_sign_), static_cast<double>(bytes_done_) / 0x1p30,
      static_cast<double>(bytes_total_) / 0x1p30);
}

}  // namespace polyreme::run
