// Virtual time: what happens when, in one thread. And the random numbers that decide it.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/clock.h"

namespace polyreme::sim {

// Everything random of one run comes from one of these, so that a seed replays it.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  // Both ends included.
  int32_t Between(int32_t low, int32_t high) {
    return low + static_cast<int32_t>(engine_() % static_cast<uint64_t>(int64_t{high} - low + 1));
  }
  bool OneIn(int32_t n) { return Between(1, n) == 1; }
  absl::Duration Between(absl::Duration low, absl::Duration high) {
    const int64_t span = absl::ToInt64Microseconds(high - low);
    return low +
           absl::Microseconds(static_cast<int64_t>(engine_() % static_cast<uint64_t>(span + 1)));
  }
  template <class Container>
  const auto& PickOf(const Container& items) {
    return items[static_cast<size_t>(Between(0, static_cast<int32_t>(std::size(items)) - 1))];
  }
  uint64_t Next() { return engine_(); }

 private:
  std::mt19937_64 engine_;
};

// A clock that moves from event to event. Events of the same time run in the order they were added.
class Loop final : public Clock {
 public:
  using Action = std::function<void()>;

  absl::Time Now() const override { return now_; }
  void At(absl::Time time, Action action) {
    events_.push_back({time, next_++, std::move(action)});
    std::push_heap(events_.begin(), events_.end(), Later);
  }
  void After(absl::Duration delay, Action action) { At(now_ + delay, std::move(action)); }
  // The next event, if it is due until `deadline`; otherwise the clock stands there, and false.
  bool RunNext(absl::Time deadline) {
    if (events_.empty() || events_.front().time > deadline) {
      now_ = std::max(now_, deadline);
      return false;
    }
    std::pop_heap(events_.begin(), events_.end(), Later);
    Event event = std::move(events_.back());
    events_.pop_back();
    now_ = std::max(now_, event.time);
    ++num_run_;
    event.action();
    return true;
  }
  void RunUntil(absl::Time deadline) {
    while (RunNext(deadline)) {
    }
  }
  // This process stands still for so long, and the world goes on.
  void Jump(absl::Duration by) { now_ += by; }
  bool empty() const { return events_.empty(); }
  int64_t num_run() const { return num_run_; }

 private:
  struct Event {
    absl::Time time;
    int64_t number = 0;
    Action action;
  };
  static bool Later(const Event& a, const Event& b) {
    return a.time != b.time ? a.time > b.time : a.number > b.number;
  }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  std::vector<Event> events_;  // a heap
  int64_t next_ = 0;
  int64_t num_run_ = 0;
};

// What a run has to say for itself: its first failure and, when asked for, what led to it.
class Report {
 public:
  Report(const Loop& loop, bool traces) : loop_(loop), traces_(traces) {}

  template <class... Args>
  void Trace(fmt::format_string<Args...> format, Args&&... args) {
    if (!traces_) return;
    lines_.push_back(
        fmt::format("{:12.6f}  {}", Seconds(), fmt::format(format, std::forward<Args>(args)...)));
    if (lines_.size() > kLines) lines_.erase(lines_.begin(), lines_.begin() + kLines / 4);
  }
  template <class... Args>
  void Fail(fmt::format_string<Args...> format, Args&&... args) {
    if (!failure_.empty()) return;
    failure_ = fmt::format(format, std::forward<Args>(args)...);
    Trace("FAILED: {}", failure_);
  }
  bool failed() const { return !failure_.empty(); }
  const std::string& failure() const { return failure_; }
  const std::vector<std::string>& lines() const { return lines_; }

 private:
  static constexpr size_t kLines = 400;
  double Seconds() const {
    return absl::ToDoubleSeconds(loop_.Now() - absl::FromUnixSeconds(1000));
  }

  const Loop& loop_;
  const bool traces_;
  std::string failure_;
  std::vector<std::string> lines_;
};

}  // namespace polyreme::sim
