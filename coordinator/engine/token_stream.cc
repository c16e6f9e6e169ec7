#include "coordinator/engine/token_stream.h"

#include <utility>

#include "parallel/base/clock.h"

namespace polyreme::engine {

TokenStream::TokenStream(int32_t capacity, std::function<void()> on_cancel)
    : capacity_(static_cast<size_t>(capacity)), on_cancel_(std::move(on_cancel)) {
  CHECK(capacity > 0);
}

bool TokenStream::Push(OutputPiece piece) {
  const std::lock_guard lock(mutex_);
  if (cancelled_ || closed_.has_value() || pieces_.size() >= capacity_) return false;
  pieces_.push_back(std::move(piece));
  NotifyLocked();
  return true;
}

void TokenStream::Close(absl::Status why) {
  const std::lock_guard lock(mutex_);
  if (closed_.has_value()) return;
  closed_ = std::move(why);
  NotifyLocked();
}

void TokenStream::NotifyLocked() {
  readable_.notify_one();
  if (notify_) notify_();
}

absl::StatusOr<std::optional<OutputPiece>> TokenStream::TakeLocked() {
  if (!pieces_.empty()) {
    std::optional<OutputPiece> piece = std::move(pieces_.front());
    pieces_.pop_front();
    return piece;
  }
  if (!closed_->ok()) return *closed_;
  return std::optional<OutputPiece>();
}

absl::StatusOr<std::optional<OutputPiece>> TokenStream::Next(absl::Time deadline) {
  std::unique_lock lock(mutex_);
  const bool woken = readable_.wait_until(
      lock, ToSteady(deadline), [&] { return !pieces_.empty() || closed_.has_value(); });
  if (!woken) return DeadlineExceeded("no output came in time");
  return TakeLocked();
}

TokenStream::Polled TokenStream::Poll() {
  const std::lock_guard lock(mutex_);
  if (pieces_.empty() && !closed_.has_value()) return {};
  return {true, TakeLocked()};
}

void TokenStream::SetNotify(std::function<void()> notify) {
  const std::lock_guard lock(mutex_);
  notify_ = std::move(notify);
  if (notify_ && (!pieces_.empty() || closed_.has_value())) notify_();
}

void TokenStream::Cancel() {
  {
    const std::lock_guard lock(mutex_);
    if (cancelled_) return;
    cancelled_ = true;
  }
  if (on_cancel_) on_cancel_();
}

bool TokenStream::cancelled() const {
  const std::lock_guard lock(mutex_);
  return cancelled_;
}

}  // namespace polyreme::engine
