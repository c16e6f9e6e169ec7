#include "parallel/comm/thread_transport.h"

#include <sys/mman.h>

#include "parallel/comm/ring_transport.h"

namespace polyreme::comm {

std::shared_ptr<RingSegment> ThreadHub::Open(const std::string& key, Epoch epoch, int size) {
  const std::lock_guard lock(mutex_);
  std::erase_if(segments_, [](const auto& entry) { return entry.second.expired(); });
  std::weak_ptr<RingSegment>& known = segments_[key];
  if (std::shared_ptr<RingSegment> segment = known.lock()) return segment;
  const auto bytes = static_cast<size_t>(RingSegment::BytesFor(size));
  // Zeroed by the system when touched, and most of it never is.
  void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(memory != MAP_FAILED, "out of address space for {} bytes", bytes);
  const auto segment =
      std::make_shared<RingSegment>(memory, size, [bytes](void* p) { ::munmap(p, bytes); });
  segment->Initialize(epoch.value);
  known = segment;
  return segment;
}

absl::StatusOr<std::unique_ptr<Transport>> JoinThreads(ThreadHub& hub, const std::string& key,
                                                       Epoch epoch, const GroupSpec& group) {
  return RingTransport::Join(hub.Open(key, epoch, group.size()), group,
                             RingTransport::Peers::kThreads, "");
}

}  // namespace polyreme::comm
