#include "parallel/launch/rendezvous.h"

#include <utility>

#include "parallel/base/clock.h"
#include "parallel/base/limits.h"

namespace polyreme::launch {

absl::Status InMemoryRendezvous::Put(std::string_view key, std::string value) {
  if (key.empty() || std::ssize(key) > limits::kMaxMeetingKeyBytes) {
    return InvalidArgument("expected a key of 1 to {} bytes, got {}", limits::kMaxMeetingKeyBytes,
                           key.size());
  }
  if (std::ssize(value) > limits::kMaxMeetingValueBytes) {
    return ResourceExhausted("key '{}': expected a value of at most {} bytes, got {}", key,
                             limits::kMaxMeetingValueBytes, value.size());
  }
  {
    const std::lock_guard lock(mutex_);
    RETURN_IF_ERROR(Fenced(key));
    const auto found = values_.find(key);
    if (found != values_.end()) {
      if (found->second == value) return absl::OkStatus();
      return AlreadyExists("key '{}' has another value", key);
    }
    if (std::ssize(values_) >= limits::kMaxMeetingKeys) {
      return ResourceExhausted("key '{}': the meeting already holds {} keys", key, values_.size());
    }
    values_.emplace(std::string(key), std::move(value));
  }
  changed_.notify_all();
  return absl::OkStatus();
}

absl::StatusOr<std::string> InMemoryRendezvous::Wait(std::string_view key, absl::Time deadline) {
  std::unique_lock lock(mutex_);
  auto found = values_.end();
  absl::Status fenced;
  const bool woken = changed_.wait_until(lock, ToSteady(deadline), [&] {
    found = values_.find(key);
    fenced = Fenced(key);
    return found != values_.end() || !fenced.ok();
  });
  if (!woken) return DeadlineExceeded("nobody put key '{:.100}'", key);
  if (!fenced.ok()) return fenced;
  return found->second;
}

void InMemoryRendezvous::Close(absl::Status why) {
  CHECK(!why.ok());
  {
    const std::lock_guard lock(mutex_);
    if (!closed_.ok()) return;
    closed_ = std::move(why);
  }
  changed_.notify_all();
}

absl::Status InMemoryRendezvous::Fenced(std::string_view key) const {
  if (!closed_.ok()) return closed_;
  for (const auto& [prefix, why] : fences_) {
    if (key.starts_with(prefix)) return why;
  }
  return absl::OkStatus();
}

void InMemoryRendezvous::Fence(std::string_view prefix, absl::Status why) {
  CHECK(!why.ok());
  Forget(prefix);
  {
    const std::lock_guard lock(mutex_);
    fences_.emplace(std::string(prefix), std::move(why));
  }
  changed_.notify_all();
}

void InMemoryRendezvous::Forget(std::string_view prefix) {
  const std::lock_guard lock(mutex_);
  auto end = values_.lower_bound(prefix);
  while (end != values_.end() && std::string_view(end->first).starts_with(prefix)) ++end;
  values_.erase(values_.lower_bound(prefix), end);
}

}  // namespace polyreme::launch
