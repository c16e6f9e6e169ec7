#include "coordinator/engine/deadline_keeper.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace polyreme::engine {
namespace {

// Between looks at a clock that is not the system's own.
constexpr absl::Duration kLook = absl::Seconds(1);

}  // namespace

absl::Status DeadlinePassed() {
  return DeadlineExceeded("the request's deadline passed before it was finished");
}

DeadlineKeeper::~DeadlineKeeper() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void DeadlineKeeper::Watch(absl::Time deadline, std::weak_ptr<TokenStream> stream) {
  {
    const std::lock_guard lock(mutex_);
    watched_.emplace(deadline, std::move(stream));
    // Streams that ended long before their deadlines would pile up.
    if (watched_.size() > 2 * size_t{limits::kMaxMailbox}) {
      std::erase_if(watched_, [](const auto& entry) { return entry.second.expired(); });
    }
    if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
  }
  changed_.notify_all();
}

void DeadlineKeeper::Run() {
  std::unique_lock lock(mutex_);
  while (!ends_) {
    if (watched_.empty()) {
      changed_.wait(lock, [&] { return ends_ || !watched_.empty(); });
      continue;
    }
    const absl::Duration left = watched_.begin()->first - clock_.Now();
    if (left > absl::ZeroDuration()) {
      changed_.wait_for(lock, absl::ToChronoNanoseconds(std::min(left, kLook)));
      continue;
    }
    const std::shared_ptr<TokenStream> stream = watched_.begin()->second.lock();
    watched_.erase(watched_.begin());
    if (stream == nullptr) continue;
    // Closing calls the stream's reader, who may not wait for us.
    lock.unlock();
    stream->Close(DeadlinePassed());
    lock.lock();
  }
}

}  // namespace polyreme::engine
