// Writes a flight record (flight_format.h) into memory that outlives the process: a shared mapping
// of a file that the process's agent holds open.
//
// Writing takes no lock, no memory and no system call: two reads of the clock and a cache line for
// each entry. What a process that is killed or stopped has written stays.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/trace/flight_format.h"

namespace polyreme::trace {

// Whose record it is.
struct FlightOwner {
  int32_t rank = 0;
  int32_t stages = 1;
  int32_t shards = 1;
  std::string launch;
  std::string host;
};

class FlightRing {
 public:
  struct Operation {
    FlightKind kind = FlightKind::kStep;
    FlightGroup group = FlightGroup::kNone;
    int32_t peer = -1;  // within the group; -1: all of it
    int64_t sequence = 0;
    int64_t bytes = 0;
  };

  // A file in memory (memfd) that holds an empty ring of this owner; its descriptor is inherited by
  // children. Unavailable if the system has none.
  static absl::StatusOr<int> MakeFile(const FlightOwner& owner);
  // Maps such a file; `fd` may be closed afterwards. DataLoss if it is none.
  static absl::StatusOr<std::unique_ptr<FlightRing>> Map(int fd);
  ~FlightRing();
  FlightRing(const FlightRing&) = delete;
  FlightRing& operator=(const FlightRing&) = delete;

  // A process begins to use the ring, which forgets all that it held.
  void Claim(int32_t pid);
  // Whether a process has used it and neither ended in order nor saved it.
  bool IsOrphaned() const;
  // The process ends in order, or has saved the ring.
  void Close();

  // Any thread, here and below. What follows belongs to this epoch.
  void BeginEpoch(Epoch epoch);
  // The ticket is for MarkStep. Operations begun from now on belong to the step.
  uint64_t BeginStep(StepId step, int64_t num_tokens);
  void MarkStep(uint64_t ticket, FlightState state);
  uint64_t BeginOperation(const Operation& operation);
  void MarkOperation(uint64_t ticket, FlightState state);

  // A copy of the whole as a file has it; entries that are being written meanwhile are left out.
  std::string Snapshot(FlightSaver saver, std::string_view reason) const;

  Epoch epoch() const { return Epoch{header_->epoch.load()}; }
  const FlightHeader& header() const { return *header_; }

 private:
  explicit FlightRing(void* memory);
  static uint64_t Begin(FlightEntry* entries, uint32_t capacity, std::atomic<uint64_t>& begun,
                        const FlightEntry& values);
  void Mark(FlightEntry* entries, uint32_t capacity, uint64_t ticket, FlightState state);
  uint64_t EpochBits() const;
  int64_t Now() const;

  FlightHeader* const header_;
  FlightEntry* const steps_;
  FlightEntry* const operations_;
};

}  // namespace polyreme::trace
