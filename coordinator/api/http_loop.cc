#include "coordinator/api/http_loop.h"

#include <sys/prctl.h>

#include <boost/asio/post.hpp>

#include "parallel/base/clock.h"
#include "parallel/base/out_of_memory.h"

namespace polyreme::api {
namespace {

constexpr absl::Duration kQuestionInterval = absl::Seconds(1);

}  // namespace

Loop::Loop()
    : guard_(boost::asio::make_work_guard(context_)),
      question_(MakeErrand([this] { is_asked_ = false; }, [] {})) {}

void Loop::Give(std::shared_ptr<Errand> errand) noexcept {
  const std::lock_guard lock(mutex_);
  if (ended_ || !errands_.Push(std::move(errand)) || is_woken_) return;
  is_woken_ = true;
  boost::asio::post(context_, HandlerIn(wake_memory_, [this] { RunErrands(); }));
}

// Those that are there now: sockets have their turn before those that come meanwhile.
void Loop::RunErrands() {
  size_t num_due = 0;
  {
    const std::lock_guard lock(mutex_);
    is_woken_ = false;
    num_due = errands_.size();
  }
  for (; num_due > 0; --num_due) {
    std::shared_ptr<Errand> errand;
    {
      const std::lock_guard lock(mutex_);
      errand = errands_.Pop();
    }
    RunOrGiveUp(*errand);
  }
}

void Loop::Run() {
  prctl(PR_SET_NAME, "http");  // in top -H
  EndIfOutOfMemory("an I/O thread", [this] { context_.run(); });
}

absl::Duration Loop::Stillness() {
  const absl::Time now = MonotonicNow();
  if (is_asked_) return now - asked_at_;
  if (now - asked_at_ < kQuestionInterval) return absl::ZeroDuration();
  asked_at_ = now;
  is_asked_ = true;
  Give(question_);
  return absl::ZeroDuration();
}

void Loop::End() {
  const std::lock_guard lock(mutex_);
  ended_ = true;
  guard_.reset();
}

}  // namespace polyreme::api
