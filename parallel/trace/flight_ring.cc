#include "parallel/trace/flight_ring.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "parallel/base/clock.h"
#include "parallel/base/monotonic.h"

namespace polyreme::trace {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

template <size_t kRoom>
void Copy(std::string_view text, std::array<char, kRoom>& to) {
  to.fill(0);
  std::copy_n(text.begin(), std::min(text.size(), kRoom), to.begin());
}

}  // namespace

absl::StatusOr<int> FlightRing::MakeFile(const FlightOwner& owner) {
  constexpr size_t kBytes = FlightBytes(kFlightSteps, kFlightOperations);
  const int fd = memfd_create("polyreme-flight", 0);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(kBytes)) != 0) {
    const int error = errno;
    if (fd >= 0) close(fd);
    return Unavailable("cannot make the memory of a flight recorder: {}", std::strerror(error));
  }
  void* const memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) {
    const int error = errno;
    close(fd);
    return Unavailable("cannot map the memory of a flight recorder: {}", std::strerror(error));
  }
  auto* const header = new (memory) FlightHeader;
  header->magic = kFlightMagic;
  header->version = kFlightVersion;
  header->entry_bytes = sizeof(FlightEntry);
  header->num_steps = kFlightSteps;
  header->num_operations = kFlightOperations;
  header->rank = owner.rank;
  header->stages = owner.stages;
  header->shards = owner.shards;
  Copy(owner.launch, header->launch);
  Copy(owner.host, header->host);
  munmap(memory, kBytes);
  return fd;
}

absl::StatusOr<std::unique_ptr<FlightRing>> FlightRing::Map(int fd) {
  constexpr size_t kBytes = FlightBytes(kFlightSteps, kFlightOperations);
  struct stat info {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size != off_t{kBytes}) {
    return DataLoss("descriptor {} is not a flight recorder of this program", fd);
  }
  void* const memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) {
    return Unavailable("cannot map a flight recorder: {}", std::strerror(errno));
  }
  std::unique_ptr<FlightRing> ring(new FlightRing(memory));
  const FlightHeader& header = *ring->header_;
  if (header.magic != kFlightMagic || header.version != kFlightVersion ||
      header.num_steps != kFlightSteps || header.num_operations != kFlightOperations) {
    return DataLoss("descriptor {} is not a flight recorder of this program", fd);
  }
  return ring;
}

FlightRing::FlightRing(void* memory)
    : header_(static_cast<FlightHeader*>(memory)),
      steps_(
          reinterpret_cast<FlightEntry*>(static_cast<std::byte*>(memory) + sizeof(FlightHeader))),
      operations_(steps_ + kFlightSteps) {}

FlightRing::~FlightRing() {
  munmap(header_, FlightBytes(kFlightSteps, kFlightOperations));
}

void FlightRing::Claim(int32_t pid) {
  // Nobody else writes now: the process before this one is gone.
  for (FlightEntry* entry = steps_; entry != operations_ + kFlightOperations; ++entry) {
    entry->ticket = 0;
  }
  header_->steps_begun = 0;
  header_->operations_begun = 0;
  header_->epoch = 0;
  header_->current_step = -1;
  header_->wall_offset_ns = MonotonicWallOffset();
  header_->last_sign_ns = MonotonicNanos();
  header_->closed = 0;
  header_->pid = pid;
}

bool FlightRing::IsOrphaned() const {
  return header_->pid.load() != 0 && header_->closed.load() == 0;
}

void FlightRing::Close() {
  header_->closed = 1;
}

void FlightRing::BeginEpoch(Epoch epoch) {
  header_->epoch = epoch.value;
  header_->current_step = -1;
}

int64_t FlightRing::Now() const {
  const int64_t now = MonotonicNanos();
  header_->last_sign_ns.store(now, kRelaxed);
  return now;
}

uint64_t FlightRing::EpochBits() const {
  return static_cast<uint64_t>(header_->epoch.load(kRelaxed)) << 32;
}

uint64_t FlightRing::Begin(FlightEntry* entries, uint32_t capacity, std::atomic<uint64_t>& begun,
                           const FlightEntry& values) {
  const uint64_t number = begun.fetch_add(1, kRelaxed);
  FlightEntry& entry = entries[number % capacity];
  entry.ticket.store(0, kRelaxed);
  std::atomic_thread_fence(std::memory_order_release);
  entry.started_ns.store(values.started_ns.load(kRelaxed), kRelaxed);
  entry.finished_ns.store(0, kRelaxed);
  entry.step.store(values.step.load(kRelaxed), kRelaxed);
  entry.sequence.store(values.sequence.load(kRelaxed), kRelaxed);
  entry.amount.store(values.amount.load(kRelaxed), kRelaxed);
  entry.what.store(values.what.load(kRelaxed), kRelaxed);
  entry.state.store(static_cast<uint64_t>(FlightState::kStarted), kRelaxed);
  entry.ticket.store(number + 1, std::memory_order_release);
  return number + 1;
}

void FlightRing::Mark(FlightEntry* entries, uint32_t capacity, uint64_t ticket, FlightState state) {
  FlightEntry& entry = entries[(ticket - 1) % capacity];
  // Long overwritten: a step that stayed in flight while a thousand others began.
  if (entry.ticket.load(std::memory_order_acquire) != ticket) return;
  entry.finished_ns.store(Now(), kRelaxed);
  entry.state.store(static_cast<uint64_t>(state), std::memory_order_release);
}

uint64_t FlightRing::BeginStep(StepId step, int64_t num_tokens) {
  header_->current_step.store(step.value, kRelaxed);
  FlightEntry values;
  values.started_ns.store(Now(), kRelaxed);
  values.step.store(step.value, kRelaxed);
  values.sequence.store(step.value + 1, kRelaxed);
  values.amount.store(num_tokens, kRelaxed);
  values.what.store(EpochBits(), kRelaxed);
  return Begin(steps_, kFlightSteps, header_->steps_begun, values);
}

void FlightRing::MarkStep(uint64_t ticket, FlightState state) {
  Mark(steps_, kFlightSteps, ticket, state);
}

uint64_t FlightRing::BeginOperation(const Operation& operation) {
  FlightEntry values;
  values.started_ns.store(Now(), kRelaxed);
  values.step.store(header_->current_step.load(kRelaxed), kRelaxed);
  values.sequence.store(operation.sequence, kRelaxed);
  values.amount.store(operation.bytes, kRelaxed);
  values.what.store(static_cast<uint64_t>(operation.kind) |
                        static_cast<uint64_t>(operation.group) << 8 |
                        static_cast<uint64_t>(operation.peer + 1) << 16 | EpochBits(),
                    kRelaxed);
  return Begin(operations_, kFlightOperations, header_->operations_begun, values);
}

void FlightRing::MarkOperation(uint64_t ticket, FlightState state) {
  Mark(operations_, kFlightOperations, ticket, state);
}

std::string FlightRing::Snapshot(FlightSaver saver, std::string_view reason) const {
  constexpr size_t kBytes = FlightBytes(kFlightSteps, kFlightOperations);
  std::string bytes(kBytes, '\0');
  const auto put = [&](size_t at, const void* value, size_t size) {
    std::memcpy(bytes.data() + at, value, size);
  };
  const auto put_now = [&](size_t at, const auto& word) {
    const auto value = word.load(kRelaxed);
    put(at, &value, sizeof value);
  };
  // What never changes, then what does.
  put(0, header_, offsetof(FlightHeader, pid));
  put(offsetof(FlightHeader, launch), header_->launch.data(), header_->launch.size());
  put(offsetof(FlightHeader, host), header_->host.data(), header_->host.size());
  put_now(offsetof(FlightHeader, pid), header_->pid);
  put_now(offsetof(FlightHeader, closed), header_->closed);
  put_now(offsetof(FlightHeader, wall_offset_ns), header_->wall_offset_ns);
  put_now(offsetof(FlightHeader, epoch), header_->epoch);
  put_now(offsetof(FlightHeader, steps_begun), header_->steps_begun);
  put_now(offsetof(FlightHeader, operations_begun), header_->operations_begun);
  put_now(offsetof(FlightHeader, last_sign_ns), header_->last_sign_ns);
  put_now(offsetof(FlightHeader, current_step), header_->current_step);
  const auto by = static_cast<uint32_t>(saver);
  put(offsetof(FlightHeader, saved_by), &by, sizeof by);
  const int64_t now = absl::ToUnixNanos(MonotonicNow());
  put(offsetof(FlightHeader, saved_ns), &now, sizeof now);
  std::array<char, sizeof(FlightHeader::reason)> text;
  Copy(reason, text);
  put(offsetof(FlightHeader, reason), text.data(), text.size());

  size_t at = sizeof(FlightHeader);
  for (FlightEntry* entry = steps_; entry != operations_ + kFlightOperations;
       ++entry, at += sizeof(FlightEntry)) {
    const uint64_t ticket = entry->ticket.load(std::memory_order_acquire);
    if (ticket == 0) continue;
    const int64_t words[] = {static_cast<int64_t>(ticket),
                             entry->started_ns.load(kRelaxed),
                             entry->finished_ns.load(kRelaxed),
                             entry->step.load(kRelaxed),
                             entry->sequence.load(kRelaxed),
                             entry->amount.load(kRelaxed),
                             static_cast<int64_t>(entry->what.load(kRelaxed)),
                             static_cast<int64_t>(entry->state.load(kRelaxed))};
    static_assert(sizeof words == sizeof(FlightEntry));
    std::atomic_thread_fence(std::memory_order_acquire);
    if (entry->ticket.load(kRelaxed) == ticket) put(at, words, sizeof words);
  }
  return bytes;
}

}  // namespace polyreme::trace
