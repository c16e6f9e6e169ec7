#include "coordinator/api/http_loop.h"

#include <boost/asio/post.hpp>

#include "parallel/base/out_of_memory.h"

namespace polyreme::api {

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
  EndIfOutOfMemory("an I/O thread", [this] { context_.run(); });
}

void Loop::End() {
  const std::lock_guard lock(mutex_);
  ended_ = true;
  guard_.reset();
}

}  // namespace polyreme::api
