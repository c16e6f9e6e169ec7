// Where ranks meet before they know each other: values under keys. Written once, read by anyone,
// waited for.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "parallel/base/status.h"

namespace polyreme::launch {

// Any thread.
class Rendezvous {
 public:
  virtual ~Rendezvous() = default;
  // Again with the same value: ok. AlreadyExists with another value; ResourceExhausted or
  // InvalidArgument over limits.
  virtual absl::Status Put(std::string_view key, std::string value) = 0;
  // Waits until the key is there. DeadlineExceeded.
  virtual absl::StatusOr<std::string> Wait(std::string_view key, absl::Time deadline) = 0;
};

// In this process: for ranks that are threads, and behind the coordinator's service.
class InMemoryRendezvous final : public Rendezvous {
 public:
  absl::Status Put(std::string_view key, std::string value) override;
  absl::StatusOr<std::string> Wait(std::string_view key, absl::Time deadline) override;

  // Fails all waits now and later, and all puts. `why` must not be ok.
  void Close(absl::Status why);
  // Forgets each key that begins with `prefix` and fails waits and puts of such keys, now and
  // later.
  void Fence(std::string_view prefix, absl::Status why);
  // Forgets each key that begins with `prefix` (an epoch that is over).
  void Forget(std::string_view prefix);

 private:
  absl::Status Fenced(std::string_view key) const;  // mutex_ is held

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string, std::less<>> values_;   // guarded by mutex_
  std::map<std::string, absl::Status, std::less<>> fences_;  // guarded by mutex_; by prefix
  absl::Status closed_;                                      // guarded by mutex_; ok while open
};

}  // namespace polyreme::launch
