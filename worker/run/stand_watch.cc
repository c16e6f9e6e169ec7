#include "worker/run/stand_watch.h"

#include <utility>

#include "parallel/base/clock.h"

namespace polyreme::run {
namespace {

constexpr absl::Duration kLook = absl::Milliseconds(250);
constexpr absl::Duration kTellAgain = absl::Seconds(1);

}  // namespace

StandWatch::StandWatch(Look look, Tell tell)
    : look_(std::move(look)), tell_(std::move(tell)), thread_([this] { Run(); }) {}

StandWatch::~StandWatch() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void StandWatch::Run() {
  comm::WaitBoard::View last = look_();
  absl::Time since = MonotonicNow();
  absl::Time told = absl::InfinitePast();
  std::unique_lock lock(mutex_);
  while (!ending_) {
    changed_.wait_for(lock, absl::ToChronoNanoseconds(kLook));
    const absl::Time now = MonotonicNow();
    const comm::WaitBoard::View view = look_();
    if (!view.waits || view.changes != last.changes) {
      last = view;
      since = now;
    } else if (!ending_ && now - since >= kStandPatience && now - told >= kTellAgain) {
      told = now;
      tell_(view.peer, now - since);
    }
  }
}

}  // namespace polyreme::run
