// The flight record of one process: its last steps and collectives, in memory and in files alike.
//
//   | FlightHeader, 1,024 bytes | step entries, 64 bytes each | operation entries, 64 bytes each |
//
// Little-endian. Entry number n of a kind (from 0) lies at n modulo the kind's capacity and bears
// ticket n + 1; ticket 0 says empty, or being written. The header's counters say how many were ever
// begun, so that a reader knows which tickets to expect where: one that is missing is torn.
//
// Times are nanoseconds of the host's monotonic clock; wall_offset_ns added to one gives wall-clock
// time since 1970. Version 1.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace polyreme::trace {

inline constexpr std::array<char, 8> kFlightMagic = {'p', 'o', 'l', 'y', 'f', 'l', 'g', 't'};
inline constexpr uint32_t kFlightVersion = 1;
inline constexpr uint32_t kFlightSteps = 1024;
inline constexpr uint32_t kFlightOperations = 2048;
inline constexpr uint32_t kMaxFlightEntries = 1 << 16;  // of one kind, in a file that is read
inline constexpr int32_t kMaxFlightFiles = 256;         // kept in one directory; the oldest go
inline constexpr int32_t kCoordinatorRank = -1;

// What an entry is about. The numbers are the format's.
enum class FlightKind : uint8_t {
  kStep = 0,  // amount: tokens
  kAllReduce = 1,
  kReduceScatter = 2,
  kAllGather = 3,
  kBroadcast = 4,
  kSend = 5,
  kReceive = 6,
  kExchange = 7,  // several messages at once
  // First stage: waits until the last stage of its shard has drawn step `sequence`.
  kAwaitTokens = 8,
};
inline constexpr uint8_t kNumFlightKinds = 9;

enum class FlightGroup : uint8_t {
  kNone = 0,
  kTensor = 1,    // the shards of a stage
  kPipeline = 2,  // the stages of a shard; peers are stages
};
inline constexpr uint8_t kNumFlightGroups = 3;

enum class FlightState : uint8_t {
  kStarted = 0,
  kEnqueued = 1,  // handed to the device; that it has ended is not seen by itself
  kFinished = 2,
  kFailed = 3,  // ended by an error, most often because the group was aborted
};
inline constexpr uint8_t kNumFlightStates = 4;

// Who made the file out of the ring.
enum class FlightSaver : uint32_t {
  kNobody = 0,
  kItself = 1,     // the process outlived the failure
  kSuccessor = 2,  // the process is gone: another took its place
  kAgent = 3,      // the process is gone, or was when the launch ended
};
inline constexpr uint32_t kNumFlightSavers = 4;

std::string_view NameOf(FlightKind kind);
std::string_view NameOf(FlightState state);

struct FlightHeader {
  std::array<char, 8> magic{};
  uint32_t version = 0;
  uint32_t entry_bytes = 0;
  uint32_t num_steps = 0;       // capacity
  uint32_t num_operations = 0;  // capacity
  int32_t rank = 0;             // kCoordinatorRank: the coordinator
  int32_t stages = 0;
  int32_t shards = 0;                 // of a stage; rank = stage * shards + shard
  std::atomic<int32_t> pid{0};        // 0: no process has used the ring
  std::atomic<uint32_t> closed{0};    // 1: its process has ended in order, or saved it
  std::atomic<uint32_t> saved_by{0};  // FlightSaver; only in files
  std::atomic<int64_t> wall_offset_ns{0};
  std::atomic<int64_t> saved_ns{0};  // by the saver's clock, as wall-clock time; only in files
  std::atomic<int64_t> epoch{0};     // the latest
  std::atomic<uint64_t> steps_begun{0};
  std::atomic<uint64_t> operations_begun{0};
  std::atomic<int64_t> last_sign_ns{0};  // when anything was last written
  std::atomic<int64_t> current_step{-1};
  std::array<char, 64> launch{};  // texts end at a NUL, or with their room
  std::array<char, 64> host{};
  std::array<char, 792> reason{};  // why it was saved; only in files
};
static_assert(sizeof(FlightHeader) == 1024);

// Each word is written alone; `ticket` is zeroed before the others and set after them.
struct FlightEntry {
  std::atomic<uint64_t> ticket{0};
  std::atomic<int64_t> started_ns{0};
  std::atomic<int64_t> finished_ns{0};  // 0: not yet
  std::atomic<int64_t> step{0};         // -1: outside any
  std::atomic<int64_t> sequence{0};     // from 1: in its group and, of messages, peer and direction
  std::atomic<int64_t> amount{0};       // bytes of this rank's operand; see FlightKind
  std::atomic<uint64_t> what{0};        // kind | group << 8 | (peer + 1) << 16 | epoch << 32
  std::atomic<uint64_t> state{0};
};
static_assert(sizeof(FlightEntry) == 64);
static_assert(std::atomic<uint64_t>::is_always_lock_free &&
              std::endian::native == std::endian::little);

// Of a whole record.
constexpr size_t FlightBytes(uint32_t num_steps, uint32_t num_operations) {
  return sizeof(FlightHeader) + (size_t{num_steps} + num_operations) * sizeof(FlightEntry);
}

}  // namespace polyreme::trace
