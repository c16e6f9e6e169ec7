// What the records of several processes say together: who waited for whom, and who fell behind.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "parallel/trace/flight_record.h"

namespace polyreme::trace {

// Who fell behind in one epoch.
struct FlightVerdict {
  std::optional<int32_t> rank;  // absent: the records do not say
  std::string why;              // one sentence
};

// `records` are of one launch and epoch, one of each rank at most; the coordinator's may be among
// them. A rank waits if it has begun an operation, or was thrown out of one, that a peer has not
// begun: such a rank is a victim, however little it has done. Who fell behind is waited for and
// waits for nobody. Where nobody waits (recorded steps of GPUs show no operations) it is the rank
// with the fewest finished steps, and among equals the one that was silent first.
FlightVerdict JudgeFlight(const std::vector<FlightRecord>& records);

// For people: each launch and epoch with a line per rank, the verdict, and the last `num_events`
// events of all ranks in order of time.
std::string TellFlights(std::vector<FlightRecord> records, int num_events);

}  // namespace polyreme::trace
