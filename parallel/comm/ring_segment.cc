#include "parallel/comm/ring_segment.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "parallel/base/limits.h"
#include "parallel/base/status.h"

namespace polyreme::comm {
namespace {

constexpr size_t kSlotBytes = size_t{256} << 10;
constexpr size_t kMaxRingBytes = size_t{256} << 10;
constexpr size_t kMinRingBytes = size_t{4} << 10;
constexpr size_t kAllRingsBytes = size_t{32} << 20;

size_t NumRings(int size) {
  return static_cast<size_t>(size) * static_cast<size_t>(size - 1);
}

size_t RingBytesFor(int size) {
  const size_t fair = kAllRingsBytes / std::max<size_t>(1, NumRings(size));
  return std::clamp(std::bit_floor(fair), kMinRingBytes, kMaxRingBytes);
}

// Where each part begins, and where the last one ends.
struct Offsets {
  size_t lines, ends, rings, slots, end;
};
Offsets OffsetsFor(int size) {
  Offsets at{};
  at.lines = sizeof(SegmentHeader);
  at.ends = at.lines + static_cast<size_t>(size) * sizeof(RankLine);
  at.rings = at.ends + NumRings(size) * sizeof(RingEnds);
  at.slots = at.rings + NumRings(size) * RingBytesFor(size);
  at.end = at.slots + static_cast<size_t>(size) * 2 * kSlotBytes;
  return at;
}

}  // namespace

int64_t RingSegment::BytesFor(int size) {
  return static_cast<int64_t>(OffsetsFor(size).end);
}

RingSegment::RingSegment(void* memory, int size, std::function<void(void*)> deleter)
    : size_(size), ring_bytes_(RingBytesFor(size)), memory_(memory), deleter_(std::move(deleter)) {
  CHECK(size >= 2 && size <= limits::kMaxRanks);
  CHECK(reinterpret_cast<uintptr_t>(memory) % kCacheLine == 0);
  const Offsets at = OffsetsFor(size);
  std::byte* const base = static_cast<std::byte*>(memory);
  header_ = reinterpret_cast<SegmentHeader*>(base);
  lines_ = reinterpret_cast<RankLine*>(base + at.lines);
  ends_ = reinterpret_cast<RingEnds*>(base + at.ends);
  rings_ = base + at.rings;
  slots_ = base + at.slots;
}

RingSegment::~RingSegment() {
  deleter_(memory_);
}

void RingSegment::Initialize(int64_t epoch) {
  header_->magic = kMagic;
  header_->epoch = epoch;
  header_->size = size_;
  header_->nonce = launch::MakeNonce();
}

int64_t RingSegment::slot_bytes() const {
  return static_cast<int64_t>(kSlotBytes);
}

std::byte* RingSegment::slot(int rank, uint64_t round) const {
  return slots_ + (static_cast<size_t>(rank) * 2 + round % 2) * kSlotBytes;
}

size_t RingSegment::RingIndex(int from, int to) const {
  return static_cast<size_t>(from * (size_ - 1) + (to > from ? to - 1 : to));
}

// Both ends count for ever; a position in the ring is the count modulo its size, which is a power
// of two.
size_t RingSegment::Write(int from, int to, const std::byte* bytes, size_t count) const {
  const size_t index = RingIndex(from, to);
  RingEnds& ends = ends_[index];
  std::byte* const ring = rings_ + index * ring_bytes_;
  const uint64_t written = ends.written.load(std::memory_order_relaxed);
  const uint64_t read = ends.read.load(std::memory_order_acquire);
  count = std::min<size_t>(count, ring_bytes_ - (written - read));
  if (count == 0) return 0;
  const size_t at = written & (ring_bytes_ - 1);
  const size_t before_wrap = std::min(count, ring_bytes_ - at);
  std::memcpy(ring + at, bytes, before_wrap);
  std::memcpy(ring, bytes + before_wrap, count - before_wrap);
  ends.written.store(written + count, std::memory_order_release);
  return count;
}

size_t RingSegment::Read(int from, int to, std::byte* bytes, size_t count) const {
  const size_t index = RingIndex(from, to);
  RingEnds& ends = ends_[index];
  const std::byte* const ring = rings_ + index * ring_bytes_;
  const uint64_t read = ends.read.load(std::memory_order_relaxed);
  const uint64_t written = ends.written.load(std::memory_order_acquire);
  count = std::min<size_t>(count, written - read);
  if (count == 0) return 0;
  const size_t at = read & (ring_bytes_ - 1);
  const size_t before_wrap = std::min(count, ring_bytes_ - at);
  std::memcpy(bytes, ring + at, before_wrap);
  std::memcpy(bytes + before_wrap, ring, count - before_wrap);
  ends.read.store(read + count, std::memory_order_release);
  return count;
}

}  // namespace polyreme::comm
