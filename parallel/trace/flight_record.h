// Reads flight records (flight_format.h) that came from anywhere.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/trace/flight_format.h"

namespace polyreme::trace {

struct FlightEvent {
  FlightKind kind = FlightKind::kStep;
  FlightGroup group = FlightGroup::kNone;
  FlightState state = FlightState::kStarted;
  int32_t peer = -1;
  Epoch epoch;
  StepId step;
  int64_t sequence = 0;
  int64_t amount = 0;  // bytes; of a step tokens
  absl::Time started;
  absl::Time finished = absl::InfiniteFuture();  // infinite: never seen to end

  // Its process was still in it, or was thrown out of it.
  bool is_open() const { return state == FlightState::kStarted || state == FlightState::kFailed; }
};

struct FlightRecord {
  std::string launch;
  std::string host;
  std::string reason;
  FlightSaver saved_by = FlightSaver::kNobody;
  absl::Time saved;
  absl::Time last_sign;  // when the process last wrote anything, saving itself included
  int32_t rank = 0;      // kCoordinatorRank: the coordinator
  int32_t stages = 1;
  int32_t shards = 1;
  int32_t pid = 0;
  Epoch epoch;
  uint64_t steps_begun = 0;
  uint64_t operations_begun = 0;
  int64_t num_torn = 0;                 // entries that were being written when the process ended
  std::vector<FlightEvent> steps;       // oldest first
  std::vector<FlightEvent> operations;  // oldest first
};

// DataLoss: not such a record, of another version, cut, or with an entry that no ring writes; says
// where.
absl::StatusOr<FlightRecord> ParseFlightRecord(std::string_view bytes);

}  // namespace polyreme::trace
