// Transport between ranks that are threads of one process: tests, the local cluster, bench.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "parallel/base/ids.h"
#include "parallel/comm/ring_segment.h"
#include "parallel/comm/transport.h"

namespace polyreme::comm {

// Where the threads find each other's memory. Owned by whoever starts the ranks; outlives their
// joining. Any thread.
class ThreadHub {
 public:
  // The group's memory; made by whoever comes first, freed with the last transport over it.
  std::shared_ptr<RingSegment> Open(const std::string& key, Epoch epoch, int size);

 private:
  std::mutex mutex_;
  std::map<std::string, std::weak_ptr<RingSegment>> segments_;  // guarded by mutex_
};

// Blocks until all ranks of the group have come. `key` names the group and epoch; the same on all
// its ranks.
absl::StatusOr<std::unique_ptr<Transport>> JoinThreads(ThreadHub& hub, const std::string& key,
                                                       Epoch epoch, const GroupSpec& group);

}  // namespace polyreme::comm
