// Work for another thread. Its memory is taken when it is made, so that giving it cannot fail.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <utility>

#include "parallel/base/status.h"

namespace polyreme::api {

class Errand {
 public:
  virtual ~Errand() = default;
  // On the thread that it was given to. It may be given again from then on.
  virtual void Run() = 0;
  // Instead of what was left to do when Run ran out of memory.
  virtual void GiveUp() noexcept = 0;

 private:
  friend class ErrandQueue;
  std::shared_ptr<Errand> next_;  // guarded by the queue's owner, and so on
  bool is_queued_ = false;
};

inline void RunOrGiveUp(Errand& errand) {
  try {
    errand.Run();
  } catch (const std::bad_alloc&) {
    errand.GiveUp();
  }
}

// First in, first out, and never allocates. An errand is in one queue at most, and there once. No
// thread of its own, no lock.
class ErrandQueue {
 public:
  ErrandQueue() = default;
  ~ErrandQueue() {
    while (Pop() != nullptr) {
    }
  }
  ErrandQueue(const ErrandQueue&) = delete;
  ErrandQueue& operator=(const ErrandQueue&) = delete;

  // False: it is there already.
  bool Push(std::shared_ptr<Errand> errand) noexcept {
    if (std::exchange(errand->is_queued_, true)) return false;
    Errand* const added = errand.get();
    (last_ == nullptr ? first_ : last_->next_) = std::move(errand);
    last_ = added;
    ++size_;
    return true;
  }
  // nullptr: empty.
  std::shared_ptr<Errand> Pop() noexcept {
    if (first_ == nullptr) return nullptr;
    std::shared_ptr<Errand> errand = std::move(first_);
    first_ = std::move(errand->next_);
    if (first_ == nullptr) last_ = nullptr;
    errand->is_queued_ = false;
    --size_;
    return errand;
  }
  size_t size() const { return size_; }

 private:
  std::shared_ptr<Errand> first_;
  Errand* last_ = nullptr;
  size_t size_ = 0;
};

// An errand of two functions; the second must not throw.
template <class Work, class Otherwise>
std::shared_ptr<Errand> MakeErrand(Work work, Otherwise otherwise) {
  class Made final : public Errand {
   public:
    Made(Work first, Otherwise second) : work_(std::move(first)), otherwise_(std::move(second)) {}
    void Run() override { work_(); }
    void GiveUp() noexcept override { otherwise_(); }

   private:
    Work work_;
    Otherwise otherwise_;
  };
  return std::make_shared<Made>(std::move(work), std::move(otherwise));
}

}  // namespace polyreme::api
