#include "parallel/comm/shm_transport.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>

#include "parallel/comm/group_errors.h"
#include "parallel/comm/ring_transport.h"
#include "parallel/comm/unique_fd.h"

namespace polyreme::comm {
namespace {

absl::StatusOr<std::shared_ptr<RingSegment>> Map(const UniqueFd& fd, int size) {
  const auto bytes = static_cast<size_t>(RingSegment::BytesFor(size));
  void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (memory == MAP_FAILED) {
    return ResourceExhausted("cannot map {} bytes of shared memory: {}", bytes,
                             std::strerror(errno));
  }
  return std::make_shared<RingSegment>(memory, size, [bytes](void* p) { ::munmap(p, bytes); });
}

// All pages are taken now, so that running out of memory is an error here and not a crash later.
absl::StatusOr<UniqueFd> MakeMemory(int size) {
  const int64_t bytes = RingSegment::BytesFor(size);
  UniqueFd fd(::memfd_create("polyreme-group", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return ResourceExhausted("cannot make memory: {}", std::strerror(errno));
  if (::ftruncate(fd.get(), bytes) != 0 || ::fallocate(fd.get(), 0, 0, bytes) != 0) {
    return ResourceExhausted("cannot take {} bytes of shared memory: {}", bytes,
                             std::strerror(errno));
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return Internal("cannot seal shared memory: {}", std::strerror(errno));
  }
  return fd;
}

// "<process> <descriptor>", as it travels at the meeting.
struct Address {
  int32_t process = 0;
  int32_t fd = 0;
};
absl::StatusOr<Address> ParseAddress(std::string_view text) {
  Address address;
  const char* const end = text.data() + text.size();
  const auto process = std::from_chars(text.data(), end, address.process);
  if (process.ec == std::errc() && process.ptr != end && *process.ptr == ' ') {
    const auto fd = std::from_chars(process.ptr + 1, end, address.fd);
    if (fd.ec == std::errc() && fd.ptr == end) return address;
  }
  return DataLoss("expected a process and a descriptor, got '{:.40}'", text);
}

absl::StatusOr<std::shared_ptr<RingSegment>> Attach(const Address& address, Epoch epoch,
                                                    const GroupSpec& group) {
  const std::string path = fmt::format("/proc/{}/fd/{}", address.process, address.fd);
  const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd.valid()) {
    return FailedPrecondition("{}: cannot open the shared memory of rank {} at {}: {}", group.name,
                              group.members[0].value, path, std::strerror(errno));
  }
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0 || info.st_size != RingSegment::BytesFor(group.size())) {
    return FailedPrecondition("{}: expected {} bytes of shared memory at {}, found {}", group.name,
                              RingSegment::BytesFor(group.size()), path, info.st_size);
  }
  ASSIGN_OR_RETURN(std::shared_ptr<RingSegment> segment, Map(fd, group.size()));
  const SegmentHeader& header = segment->header();
  if (header.magic != RingSegment::kMagic || header.size != group.size() ||
      header.epoch != epoch.value) {
    return FailedPrecondition("{}: {} holds the memory of {} ranks at epoch {}", group.name, path,
                              header.size, header.epoch);
  }
  return segment;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Transport>> JoinSharedMemory(launch::Rendezvous& meet,
                                                            const std::string& key, Epoch epoch,
                                                            const GroupSpec& group,
                                                            const std::string& job_token) {
  constexpr auto kProcesses = RingTransport::Peers::kProcesses;
  const std::string address_key = key + "/memory";
  if (group.rank == 0) {
    ASSIGN_OR_RETURN(const UniqueFd fd, MakeMemory(group.size()));
    ASSIGN_OR_RETURN(std::shared_ptr<RingSegment> segment, Map(fd, group.size()));
    segment->Initialize(epoch.value);
    RETURN_IF_ERROR(meet.Put(address_key, fmt::format("{} {}", ::getpid(), fd.get())));
    return RingTransport::Join(std::move(segment), group, kProcesses, job_token);
  }
  const absl::StatusOr<std::string> text = meet.Wait(address_key, group.deadline);
  if (absl::IsDeadlineExceeded(text.status())) {
    return DidNotJoin(group, [](int peer) { return peer == 0; });
  }
  RETURN_IF_ERROR(text.status());
  ASSIGN_OR_RETURN(const Address address, ParseAddress(*text));
  ASSIGN_OR_RETURN(std::shared_ptr<RingSegment> segment, Attach(address, epoch, group));
  return RingTransport::Join(std::move(segment), group, kProcesses, job_token);
}

}  // namespace polyreme::comm
