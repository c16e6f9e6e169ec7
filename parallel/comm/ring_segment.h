// The memory that the ranks of one group share, be they threads or processes: a byte ring for each
// ordered pair of ranks, a doorbell per rank, a stage for sums, and the word that ends the group.
//
//   | SegmentHeader | RankLine x n | RingEnds x n(n-1) | ring x n(n-1) | slot x 2n |
//
// All of it is valid when zeroed. Rings have one writer and one reader each and never block; who
// finds nothing to do sleeps on its own doorbell (RingTransport).
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>

#include "parallel/launch/job_token.h"

namespace polyreme::comm {

inline constexpr size_t kCacheLine = 64;

// Written by whoever makes the segment, before anyone else sees it; then only `ended` changes.
struct SegmentHeader {
  std::array<char, 8> magic{};
  int64_t epoch = 0;
  int32_t size = 0;
  launch::Nonce nonce{};
  // 0: alive; 1: someone is writing why; 2: written.
  alignas(kCacheLine) std::atomic<uint32_t> ended{0};
  std::atomic<uint32_t> num_left{0};
  int32_t ended_by = 0;
  std::array<char, 488> why{};
};

// What one rank tells the others about itself.
struct RankLine {
  static constexpr uint32_t kAbsent = 0, kComing = 1, kHere = 2, kLeft = 3;
  alignas(kCacheLine) std::atomic<uint32_t> state{kAbsent};
  int32_t process = 0;                                    // 0: a thread
  launch::Proof proof{};                                  // of the job token
  alignas(kCacheLine) std::atomic<uint32_t> doorbell{0};  // futex; rung by any peer
  std::atomic<uint32_t> asleep{0};
  alignas(kCacheLine) std::atomic<uint64_t> round{0};  // of the stage, published last
};

// Bytes ever written to and read from a ring.
struct RingEnds {
  alignas(kCacheLine) std::atomic<uint64_t> written{0};
  alignas(kCacheLine) std::atomic<uint64_t> read{0};
};
static_assert(std::atomic<uint32_t>::is_always_lock_free);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

// A view of such memory; owns it through the deleter.
class RingSegment {
 public:
  static constexpr std::array<char, 8> kMagic = {'p', 'o', 'l', 'y', 'r', 'i', 'n', 'g'};

  // Bytes of a group of `size` ranks. Rings grow smaller as groups grow, so that the whole stays in
  // tens of MiB.
  static int64_t BytesFor(int size);

  // memory: BytesFor(size) bytes, 64-byte aligned, zeroed or attached.
  RingSegment(void* memory, int size, std::function<void(void*)> deleter);
  ~RingSegment();
  RingSegment(const RingSegment&) = delete;
  RingSegment& operator=(const RingSegment&) = delete;

  // Makes zeroed memory a segment of this epoch.
  void Initialize(int64_t epoch);

  int size() const { return size_; }
  SegmentHeader& header() const { return *header_; }
  RankLine& line(int rank) const { return lines_[rank]; }
  int64_t slot_bytes() const;
  std::byte* slot(int rank, uint64_t round) const;

  // Copies what fits / what is there between `bytes` and the ring; the bytes moved. Never waits.
  size_t Write(int from, int to, const std::byte* bytes, size_t count) const;
  size_t Read(int from, int to, std::byte* bytes, size_t count) const;

 private:
  size_t RingIndex(int from, int to) const;

  const int size_;
  const size_t ring_bytes_;
  void* const memory_;
  const std::function<void(void*)> deleter_;
  SegmentHeader* header_ = nullptr;
  RankLine* lines_ = nullptr;
  RingEnds* ends_ = nullptr;
  std::byte* rings_ = nullptr;
  std::byte* slots_ = nullptr;
};

}  // namespace polyreme::comm
