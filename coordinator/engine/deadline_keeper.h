// Tells clients at their deadline, whatever the engine thread is waiting for: a step that takes
// long, a worker that hangs, a recovery.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/time/time.h"
#include "coordinator/engine/token_stream.h"
#include "parallel/base/clock.h"
#include "parallel/base/limits.h"

namespace polyreme::engine {

// The error of a request whose deadline has passed.
absl::Status DeadlinePassed();

// Closes streams when their time has come. The engine finds them closed at its next look and frees
// what they held. As many streams as the engine has accepted; thread-safe.
class DeadlineKeeper {
 public:
  // The clock is borrowed.
  explicit DeadlineKeeper(const Clock& clock) : clock_(clock) {}
  ~DeadlineKeeper();

  // Starts its thread when it is first needed. A stream that ends before is forgotten at its
  // deadline, and not kept alive until then.
  void Watch(absl::Time deadline, std::weak_ptr<TokenStream> stream);

 private:
  void Run();

  const Clock& clock_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::multimap<absl::Time, std::weak_ptr<TokenStream>> watched_;  // guarded by mutex_
  bool ends_ = false;                                              // guarded by mutex_
  std::thread thread_;                                             // guarded by mutex_
};

}  // namespace polyreme::engine
